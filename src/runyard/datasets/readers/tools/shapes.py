"""The shapes of one image while its file is read, and the annotations that are left out.

A shape without a box that can be known rejects its row. A shape that the format defines, and that
is no box or polygon, such as a point, is left out and counted: one warning for each kind, with the
first one's location.
"""

from collections.abc import Sequence

from runyard.datasets.findings import Finding, ReportFinding, make_finding
from runyard.datasets.readers.base import BoxLocation, Row
from runyard.datasets.readers.boxes import LabeledBox, build_row, find_image_size, to_fractions
from runyard.datasets.records import Box
from runyard.datasets.sources import Source

MAX_SHAPES = 100_000  # of one image
MAX_KINDS = 50  # of annotations that are reported apart


class IgnoredAnnotations:
    """A count of the annotations that are left out, by kind."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, tuple[str, int | None, str | None, str | None]] = {}
        self._files: dict[str, tuple[str, int]] = {}  # last file and number of files, by kind

    def count(
        self,
        kind: str,
        *,
        file: str,
        line: int | None = None,
        field: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Count an annotation; ``kind`` is a plural, such as ``shapes of type point``."""
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = "annotations of other types"
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._firsts.setdefault(kind, (file, line, field, fix))
        last, files = self._files.get(kind, ("", 0))
        if last != file:
            self._files[kind] = file, files + 1

    def report(self, report: ReportFinding) -> None:
        """Report each kind once."""
        for kind, count in self._counts.items():
            file, line, field, fix = self._firsts[kind]
            files = self._files[kind][1]
            where = f" in {files:,} files" if files > 1 else ""
            report(
                make_finding(
                    "AnnotationsIgnored",
                    file=file,
                    line=line,
                    field=field,
                    value=count,
                    cause=f"left out: {count:,} {kind}{where}; this is the first",
                    action="Mended",
                    fix=fix,
                )
            )


class ImageShapes:
    """The shapes of one image: boxes in pixels, and findings about shapes without a box."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.findings: list[Finding] = []
        self._boxes: list[LabeledBox] = []

    def add(
        self, name: object, box: Box | None, *, field: str, line: int | None = None, what: str
    ) -> None:
        """Add a shape with its class name; report it if either is missing or not valid.

        ``what`` says what the shape must have, such as ``x, y, width and height``.
        """
        if box is None:
            cause = f"the shape needs {what} as numbers"
            self.reject("FieldInvalid", cause, field=field, line=line)
        elif not isinstance(name, str):
            cause = "the shape has no class name"
            self.reject("FieldMissing", cause, field=field, line=line, value=name)
        elif len(self._boxes) < MAX_SHAPES:
            self._boxes.append(LabeledBox(name.strip(), box, BoxLocation(line, field)))
        elif not self.findings:
            cause = f"the image has more than {MAX_SHAPES:,} shapes"
            self.reject("RowInvalid", cause, field=field, line=line)

    def reject(
        self,
        code: str,
        cause: str,
        *,
        field: str,
        line: int | None = None,
        value: object = None,
        fix: str | None = None,
    ) -> None:
        """Add a finding that leaves out the image's row."""
        self.findings.append(
            make_finding(
                code, file=self.path, line=line, field=field, cause=cause, value=value, fix=fix
            )
        )

    def build_row(
        self,
        source: Source,
        name: str,
        *,
        frame: tuple[int, int] | None,
        field: str | None = None,
        line: int | None = None,
        is_name_certain: bool = True,
    ) -> Row | None:
        """Build the row; return None if the image has no shapes.

        With a name that is not certain the row has no boxes, only findings.
        """
        boxes: Sequence[LabeledBox] = self._boxes if is_name_certain else []
        if not boxes and not self.findings:
            return None
        size = find_image_size(source, name, self.path, frame)
        return build_row(
            source,
            name,
            [labeled._replace(box=to_fractions(labeled.box, size)) for labeled in boxes],
            file=self.path,
            line=line,
            field=field,
            frame=frame,
            unit="pixel",
            findings=self.findings,
        )


def choose_name(source: Source, path: str, names: Sequence[str]) -> str:
    """Return the first name that an image has, else the first of the names."""
    found = (name for name in names if source.find_image(name, relative_to=path) is not None)
    return next(found, names[0])
