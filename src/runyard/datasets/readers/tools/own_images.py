"""The image of an annotation file that describes one image.

Such a file names its image twice: in a field, and by its own name. After images were renamed or
copied the field is often stale.
"""

import posixpath
from typing import NamedTuple

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.sources import Source


class OwnImage(NamedTuple):
    """The image's name, and a finding if the field contradicts the file's own name."""

    name: str
    finding: Finding | None = None


def find_own_image(
    source: Source, path: str, named: str, *, line: int | None = None, field: str
) -> OwnImage:
    """Return the image of an annotation file.

    It is the image named in the file's field, or if there is none, that with the file's own name.
    If both exist and differ, either may be meant. A rejected image exists.
    """
    stem = posixpath.splitext(posixpath.basename(path))[0]
    own = source.resolve_image(stem, relative_to=path)
    wanted = source.resolve_image(named, relative_to=path) if named else None
    if wanted is None or wanted.status == "missing":
        return OwnImage(stem if own.status != "missing" else named or stem)
    if wanted.image is None or not own.paths or wanted.image.path in own.paths:
        return OwnImage(named)
    finding = make_finding(
        "ImageAmbiguous",
        file=path,
        line=line,
        field=field,
        value=named,
        cause=f"it names the image {wanted.image.path!r}, but the image {own.paths[0]!r} has the "
        "file's own name",
        fix="correct the name in the file, or rename the file like its image",
    )
    return OwnImage(named, finding)
