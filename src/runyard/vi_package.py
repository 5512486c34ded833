"""Checks whether the package ``vi`` is Runyard's, or that of ``vi-sdk``, which has the same name.

pip does not notice that two distributions own one package. The one installed last overwrites the
other, and uninstalling either removes files of both. This module does not import ``vi``, which may
be the wrong package, or incomplete.
"""

from importlib.util import find_spec
from pathlib import Path

MARKER = b'__distribution__ = "runyard"'
FIX = (
    "try: pip uninstall -y vi-sdk && pip install --force-reinstall --no-deps runyard; "
    "keep vi-sdk in an environment of its own"
)


def describe_conflict() -> str | None:
    """Return the problem of the package ``vi`` that would be imported, and its fix; None if it is
    Runyard's.
    """
    spec = find_spec("vi")
    if spec is None or spec.origin is None:
        return (
            "the package vi is missing or incomplete (uninstalling vi-sdk removes its files); "
            f"{FIX}"
        )
    try:
        is_ours = MARKER in Path(spec.origin).read_bytes()
    except OSError as error:
        return f"cannot read the package vi: {error.strerror}: {spec.origin}; {FIX}"
    if is_ours:
        return None
    return (
        f"the package vi is not Runyard's: {spec.origin} belongs to another distribution, probably "
        f"vi-sdk, which installs a package of the same name; {FIX}"
    )


def list_changed_files() -> list[str]:
    """Return the files of ``vi`` that are missing or changed since Runyard's install; none if
    editable.
    """
    import base64
    import hashlib
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution("runyard")
    except PackageNotFoundError:
        return []
    changed = []
    for file in installed.files or ():
        if file.parts[0] != "vi" or file.hash is None:
            continue
        try:
            digest = hashlib.new(file.hash.mode, Path(str(file.locate())).read_bytes()).digest()
        except OSError:
            changed.append(str(file))
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    return changed
