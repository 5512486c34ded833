"""Whose package ``vi`` is: Runyard's, or that of ``vi-sdk``, which installs files under the same name.

pip does not notice that two distributions own one package; the one that is installed last overwrites the other, and
uninstalling either removes files of both. Nothing here imports ``vi``, which may be the wrong one, or in pieces.
"""

from importlib.util import find_spec
from pathlib import Path

MARKER = b'__distribution__ = "runyard"'
REMEDY = (
    "try: pip uninstall -y vi-sdk && pip install --force-reinstall --no-deps runyard; "
    "keep vi-sdk in an environment of its own"
)


def describe_conflict() -> str | None:
    """Return what is wrong with the package ``vi`` that would be imported, and what to do; None when it is ours."""
    spec = find_spec("vi")
    if spec is None or spec.origin is None:
        return f"the package vi is not there, or has lost its files (uninstalling vi-sdk removes them); {REMEDY}"
    try:
        is_ours = MARKER in Path(spec.origin).read_bytes()
    except OSError as error:
        return f"the package vi cannot be read: {error.strerror}: {spec.origin}; {REMEDY}"
    if is_ours:
        return None
    return (
        f"the package vi is not Runyard's: {spec.origin} belongs to another distribution, most likely vi-sdk, which "
        f"installs files under the same name; {REMEDY}"
    )


def list_changed_files() -> list[str]:
    """Return files of ``vi`` that are missing or not those that Runyard installed; empty for an editable install."""
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
