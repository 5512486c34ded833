"""The reader of CVAT's XML: "CVAT for images 1.1" and "CVAT for video 1.1", in pixels.

A file is parsed as a stream: an image's row is complete at its end. A track has the boxes of one
object in all frames, so boxes of tracks are kept as plain numbers until the end of the file.
"""

import math
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.boxes import parse_number, parse_size, to_number
from runyard.datasets.readers.lines import read_head
from runyard.datasets.readers.tools.geometry import (
    bound_ellipse,
    bound_polygon,
    find_center,
    rotate_rectangle,
    to_numbers,
    to_points,
)
from runyard.datasets.readers.tools.shapes import IgnoredAnnotations, ImageShapes, choose_name
from runyard.datasets.readers.tools.xml_files import (
    XmlRejected,
    parse_stream,
    read_xml_root,
    report_xml,
)
from runyard.datasets.records import Box, DatasetType
from runyard.datasets.sources import Source

# Each shape with a box, and the attributes it needs.
NEEDS = {
    "box": "xtl, ytl, xbr and ybr",
    "polygon": "points",
    "ellipse": "cx, cy, rx and ry",
    "mask": "left, top, width and height",
}
OTHER_SHAPES = ("polyline", "points", "cuboid", "skeleton", "tag")
MAX_TEXT = 1000  # characters of an element whose text is used
MAX_TRACK_BOXES = 4_000_000  # in memory, 56 bytes each
MAX_FRAMES = 1_000_000
MAX_FRAME = 1 << 31
SAVE_IMAGES = 'export with "Save images", or as "CVAT for images 1.1"'


class CvatXmlReader:
    """The reader of CVAT's own XML; see ``base.Reader``."""

    name = "CvatXml"
    types: tuple[DatasetType, ...] = ("phrase-grounding",)

    def detect(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_cvat(source, path)]

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        ignored = IgnoredAnnotations()
        for path in files:
            document = _Document(source, path, report, ignored)
            try:
                with source.open(path) as file:
                    for _ in parse_stream(file, document):
                        while document.rows:
                            yield document.rows.popleft()
            except XmlRejected as error:
                # The end may hold more boxes of each frame, so no frame is complete.
                report_xml(error, path, report)
            else:
                yield from document.frames.iter_rows(report)
        ignored.report(report)


def _is_cvat(source: Source, path: str) -> bool:
    if read_xml_root(source, path) != "annotations":
        return False
    head = read_head(source, path)
    return any(tag in head for tag in (b"<image ", b"<track ", b"<meta"))


@dataclass
class _Image:
    """The image whose element is open."""

    shapes: ImageShapes
    attributes: Mapping[str, str]
    line: int
    number: int


@dataclass
class _Track:
    """The track whose element is open."""

    name: str
    number: int


class _Document:
    """One file being parsed: rows of its images, and boxes of its tracks."""

    def __init__(
        self, source: Source, path: str, report: ReportFinding, ignored: IgnoredAnnotations
    ) -> None:
        self.rows: deque[Row] = deque()
        self.frames = _Frames(source, path)
        self._source, self._path, self._report, self._ignored = source, path, report, ignored
        self._depth = 0
        self._parent = self._text = ""
        self._open: _Image | _Track | None = None
        self._images = self._tracks = 0

    def start_element(self, name: str, attributes: Mapping[str, str], line: int) -> None:
        self._depth += 1
        if self._depth == 2:
            self._open = None
            if name == "image":
                self._open = _Image(ImageShapes(self._path), dict(attributes), line, self._images)
                self._images += 1
            elif name == "track":
                self._open = _Track(attributes.get("label", ""), self._tracks)
                self._tracks += 1
        elif self._depth == 3 and isinstance(self._open, _Image):
            self._add_shape(self._open, name, attributes, line)
        elif self._depth == 3 and isinstance(self._open, _Track):
            self._add_tracked(self._open, name, attributes, line)
        if name == "original_size":
            self._parent = name
        self._text = ""

    def end_element(self, name: str) -> None:
        self._depth -= 1
        if self._depth == 1 and isinstance(self._open, _Image):
            self._finish_image(self._open)
        if name == "original_size":
            self._parent = ""
        elif self._parent and name in ("width", "height"):
            self.frames.add_side(name, self._text.strip())

    def add_text(self, text: str) -> None:
        if len(self._text) < MAX_TEXT:
            self._text += text[:MAX_TEXT]

    def _add_shape(
        self, image: _Image, kind: str, attributes: Mapping[str, str], line: int
    ) -> None:
        field = f"image[{image.number}].{kind}"
        if kind in NEEDS:
            box = _bound_shape(kind, attributes)
            image.shapes.add(attributes.get("label"), box, field=field, line=line, what=NEEDS[kind])
        elif kind in OTHER_SHAPES:
            self._ignored.count(f"shapes of type {kind}", file=self._path, line=line, field=field)
        else:
            cause = "this type of shape is not known"
            image.shapes.reject("FieldInvalid", cause, field=field, line=line, value=kind)

    def _finish_image(self, image: _Image) -> None:
        attributes = image.attributes
        name = attributes.get("name", "")
        if not name:
            cause = "the image has no name"
            image.shapes.reject("FieldMissing", cause, field="image.name", line=image.line)
        subset = attributes.get("subset")
        names = [f"{subset}/{name}", name] if subset else [name]
        row = image.shapes.build_row(
            self._source,
            choose_name(self._source, self._path, names),
            frame=parse_size(attributes.get("width"), attributes.get("height")),
            line=image.line,
        )
        if row is not None:
            self.rows.append(row)

    def _add_tracked(
        self, track: _Track, kind: str, attributes: Mapping[str, str], line: int
    ) -> None:
        """Keep the box of a track in one frame; ``outside`` means that it is not visible."""
        if attributes.get("outside") == "1":
            return
        field = f"track[{track.number}].{kind}"
        frame = to_number(attributes.get("frame"))
        if kind not in NEEDS:
            kind = f"tracked shapes of type {kind[:40]}"
            self._ignored.count(kind, file=self._path, line=line, field=field)
        elif frame is None or not 0 <= frame < MAX_FRAME or not frame.is_integer():
            cause, value = "the shape needs the number of its frame", attributes.get("frame")
            self._report(
                make_finding(
                    "FieldInvalid",
                    file=self._path,
                    line=line,
                    field=f"{field}.frame",
                    cause=cause,
                    value=value,
                )
            )
        elif (box := _bound_shape(kind, attributes)) is None:
            self.frames.reject(int(frame), NEEDS[kind], field=field, line=line)
        else:
            self.frames.add(int(frame), track, line, box)


class _Frames:
    """The boxes of tracks by frame."""

    def __init__(self, source: Source, path: str) -> None:
        self._source, self._path = source, path
        # Seven numbers per box: class, track, line, and corners.
        self._boxes: dict[int, array[float]] = {}
        self._rejected: dict[int, ImageShapes] = {}  # frames with shapes that have no box
        self._classes: dict[str, int] = {}
        self._count = 0
        self._sides: dict[str, str | None] = {}

    def add_side(self, name: str, text: str) -> None:
        """Add a side of the frames' size; tasks of different sizes leave it unknown."""
        self._sides[name] = text if self._sides.get(name, text) == text else None

    def add(self, frame: int, track: _Track, line: int, box: Box) -> None:
        """Add a box. Raises XmlRejected if there are too many."""
        self._count += 1
        if self._count > MAX_TRACK_BOXES or len(self._boxes) > MAX_FRAMES:
            cause = f"tracks have more than {MAX_TRACK_BOXES:,} boxes or {MAX_FRAMES:,} frames"
            raise XmlRejected(cause, line=line)
        number = self._classes.setdefault(track.name, len(self._classes))
        self._boxes.setdefault(frame, array("d")).extend((number, track.number, line, *box))

    def reject(self, frame: int, needs: str, *, field: str, line: int) -> None:
        """Add a shape without a box, which leaves out the row of its frame."""
        shapes = self._rejected.setdefault(frame, ImageShapes(self._path))
        shapes.add("", None, field=field, line=line, what=needs)

    def iter_rows(self, report: ReportFinding) -> Iterator[Row]:
        """Yield the row of each frame, and report how many have no image."""
        classes = list(self._classes)
        size = parse_size(self._sides.get("width"), self._sides.get("height"))
        missing: list[str] = []
        for frame in sorted(self._boxes.keys() | self._rejected.keys()):
            name = choose_name(self._source, self._path, _list_frame_names(frame))
            if self._source.find_image(name, relative_to=self._path) is None:
                missing.append(name)
            shapes = self._rejected.pop(frame, ImageShapes(self._path))
            numbers = self._boxes.pop(frame, array("d"))
            for at in range(0, len(numbers), 7):
                box = (numbers[at + 3], numbers[at + 4], numbers[at + 5], numbers[at + 6])
                line, field = int(numbers[at + 2]), f"track[{int(numbers[at + 1])}].box"
                shapes.add(classes[int(numbers[at])], box, field=field, line=line, what="a box")
            row = shapes.build_row(self._source, name, frame=size, field=f"frame[{frame}]")
            if row is not None:
                yield row
        if missing:
            count = len(missing)
            cause = f"{count:,} frames of tracks have no image, such as {missing[0]!r}"
            found = make_finding(
                "AnnotationsIgnored",
                file=self._path,
                field="track",
                cause=cause,
                value=count,
                fix=SAVE_IMAGES,
            )
            report(found)


def _list_frame_names(frame: int) -> list[str]:
    """List the names that CVAT and its converters give to the image of a frame."""
    return [f"frame_{frame:06d}", f"{frame:06d}", f"frame_{frame}"]


def _bound_shape(kind: str, attributes: Mapping[str, str]) -> Box | None:
    """Return the bounding box of a shape; rotation is in degrees around its center."""
    radians = math.radians(parse_number(attributes.get("rotation", "0")) or 0.0)
    if kind == "polygon":
        pairs = [pair.split(",") for pair in attributes.get("points", "").split(";")]
        return bound_polygon(to_points(pairs))
    if kind == "ellipse":
        numbers = to_numbers([attributes.get(name) for name in ("cx", "cy", "rx", "ry")])
        if numbers is None:
            return None
        return bound_ellipse((numbers[0], numbers[1]), (numbers[2], numbers[3]), radians)
    if kind == "mask":  # its extent
        numbers = to_numbers([attributes.get(name) for name in ("left", "top", "width", "height")])
        if numbers is None:
            return None
        return numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3]
    numbers = to_numbers([attributes.get(name) for name in ("xtl", "ytl", "xbr", "ybr")])
    if numbers is None:
        return None
    box = (numbers[0], numbers[1], numbers[2], numbers[3])
    return rotate_rectangle(box, radians, find_center(box))
