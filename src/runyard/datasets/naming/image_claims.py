"""Several names for one image: at most one of them can be right.

``train/1.jpg`` and ``test/1.jpg`` both fit an image ``1.jpg`` if the folders are missing, but they
were two images when the annotations were made. An image's own path is always right. Of other names,
the one whose annotation file is nearest to the image is used; if two are equally near, none is.
"""

from array import array
from dataclasses import dataclass, field

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.naming.image_names import ImageFacts, Resolution, count_shared_folders

_OWN_PATH = 1_000_000  # nearer than any folder


@dataclass(slots=True)
class _Claim:
    """The name by which rows refer to an image.

    ``kept`` numbers the records that were kept under a name that is not the image's path.
    """

    name: str
    file: str
    line: int | None
    nearness: int
    is_void: bool = False
    kept: "array[int]" = field(default_factory=lambda: array("Q"))


class ImageClaims:
    """The names by which each image was found, and the records to take back because of them."""

    def __init__(self, report: ReportFinding) -> None:
        self.withdrawn: set[int] = set()
        self._report = report
        self._claims: dict[str, _Claim] = {}
        self._of_row: list[_Claim] = []

    def begin_row(self) -> None:
        self._of_row = []

    def claim(self, found: Resolution, name: str, *, file: str, line: int | None) -> str | None:
        """Note that a row refers to an image by this name.

        Return why the row cannot be used, or None. Records of an earlier row with a worse name are
        withdrawn, which is reported.
        """
        image = found.image
        if image is None:
            return None
        nearness = _OWN_PATH if found.is_exact else count_shared_folders(image.path, file)
        claim = self._claims.get(image.path)
        if claim is None or nearness > claim.nearness:
            before, claim = claim, _Claim(name, file, line, nearness)
            self._claims[image.path] = claim
            if before is not None and before.kept:
                self._withdraw(before, image, claim)
        elif not found.is_exact and (claim.name != name or nearness < claim.nearness):
            if nearness == claim.nearness and not claim.is_void:
                claim.is_void = True
                self._withdraw(claim, image, _Claim(name, file, line, nearness))
            return _explain(image, claim)
        if not found.is_exact:
            self._of_row.append(claim)
        return _explain(image, claim) if claim.is_void else None

    def add_kept(self, number: int) -> None:
        """Note the number of the record that was kept for the current row."""
        for claim in self._of_row:
            claim.kept.append(number)

    def forget_from(self, number: int) -> None:
        """Forget the records from this number on, which were discarded with their file."""
        self.withdrawn = {kept for kept in self.withdrawn if kept < number}
        for claim in self._claims.values():
            while claim.kept and claim.kept[-1] >= number:
                claim.kept.pop()

    def _withdraw(self, claim: _Claim, image: ImageFacts, other: _Claim) -> None:
        if claim.kept:
            self._report(_make_finding(claim, image, other))
        self.withdrawn.update(claim.kept)
        claim.kept = array("Q")


def _make_finding(claim: _Claim, image: ImageFacts, other: _Claim) -> Finding:
    return make_finding(
        "ImageAmbiguous",
        file=claim.file,
        line=claim.line,
        field="asset.filename",
        cause=_explain(image, other),
        value=claim.name,
        rows=len(claim.kept),
    )


def _explain(image: ImageFacts, claim: _Claim) -> str:
    where = claim.file if claim.line is None else f"{claim.file}:{claim.line}"
    return f"the only image that fits is {image.path!r}, which {where} calls {claim.name!r}"
