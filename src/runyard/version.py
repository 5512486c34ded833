"""The version of this installation."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("runyard")
    except PackageNotFoundError:
        return "0+unknown"


VERSION = _installed_version()
