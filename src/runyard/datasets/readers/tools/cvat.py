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
from runyard.datasets.readers.boxes import parse_number
from runyard.datasets.readers.lines import read_head
from runyard.datasets.readers.tools.geometry import (
    bound_ellipse,
    bound_polygon,
    find_center,
    rotate_rectangle,
    to_number,
    to_numbers,
    to_points,
    to_size,
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
MAX_TRACK_BOXES = 20_000_000
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
            document = _Document(source, path, ignored)
            try:
                with source.open(path) as file:
                    for _ in parse_stream(file, document):
                        while document.rows:
                            yield document.rows.popleft()
            except XmlRejected as error:
                report_xml(error, path, report)
            yield from document.iter_frames(report)
        ignored.report(report)


def _is_cvat(source: Source, path: str) -> bool:
    return read_xml_root(source, path) == "annotations" and any(
        f"<{name}" in read_text_head(source, path) for name in ("image ", "track ", "meta")
    )


def read_text_head(source: Source, path: str) -> str:
    return read_head(source, path).decode(errors="replace")


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

    def __init__(self, source: Source, path: str, ignored: IgnoredAnnotations) -> None:
        self.rows: deque[Row] = deque()
        self._source, self._path, self._ignored = source, path, ignored
        self._open: list[str] = []
        self._text = ""
        self._image: _Image | None = None
        self._track: _Track | None = None
        self._images = self._tracks = 0
        self._sizes: dict[str, set[str]] = {"width": set(), "height": set()}
        # Seven numbers per box: class, track, line, and corners.
        self._frames: dict[int, array[float]] = {}
        self._rejected: dict[int, ImageShapes] = {}  # frames with shapes that have no box
        self._classes: dict[str, int] = {}
        self._track_boxes = 0

    def start_element(self, name: str, attributes: Mapping[str, str], line: int) -> None:
        self._open.append(name)
        self._text = ""
        parent = self._open[-2] if len(self._open) > 1 else ""
        if len(self._open) == 2 and name == "image":
            self._image = _Image(ImageShapes(self._path), dict(attributes), line, self._images)
            self._images += 1
        elif len(self._open) == 2 and name == "track":
            self._track = _Track(attributes.get("label", ""), self._tracks)
            self._tracks += 1
        elif parent == "image" and self._image is not None and len(self._open) == 3:
            self._add_shape(self._image, name, attributes, line)
        elif parent == "track" and self._track is not None and len(self._open) == 3:
            self._add_tracked(self._track, name, attributes, line)

    def end_element(self, name: str) -> None:
        self._open.pop()
        if len(self._open) == 1:
            if name == "image" and self._image is not None:
                self._finish_image(self._image)
                self._image = None
            elif name == "track":
                self._track = None
        elif name in self._sizes and self._open[-1] == "original_size":
            self._sizes[name].add(self._text.strip())

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
            frame=to_size(attributes.get("width"), attributes.get("height")),
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
        if kind not in NEEDS:
            kind = f"tracked shapes of type {kind[:40]}"
            self._ignored.count(kind, file=self._path, line=line, field=field)
            return
        frame = to_number(attributes.get("frame"))
        box = _bound_shape(kind, attributes)
        is_frame = frame is not None and 0 <= frame < 1 << 31 and frame.is_integer()
        if box is None or not is_frame or frame is None:
            shapes = self._rejected.setdefault(
                int(frame or 0) if is_frame else -1, ImageShapes(self._path)
            )
            cause = f"the shape needs a frame, and {NEEDS[kind]} as numbers"
            shapes.reject("FieldInvalid", cause, field=field, line=line)
            return
        self._track_boxes += 1
        if self._track_boxes > MAX_TRACK_BOXES:
            raise XmlRejected(f"it has more than {MAX_TRACK_BOXES:,} boxes of tracks", line=line)
        number = self._classes.setdefault(track.name, len(self._classes))
        self._frames.setdefault(int(frame), array("d")).extend((number, track.number, line, *box))

    def iter_frames(self, report: ReportFinding) -> Iterator[Row]:
        """Yield the rows of all frames that have boxes of tracks."""
        classes = list(self._classes)
        width, height = (
            next(iter(sizes)) if len(sizes) == 1 else None for sizes in self._sizes.values()
        )
        size = to_size(width, height)
        for found in self._rejected.pop(-1, ImageShapes("")).findings:
            report(found)
        missing: list[int] = []
        for frame in sorted(self._frames.keys() | self._rejected.keys()):
            names = _list_frame_names(frame)
            name = choose_name(self._source, self._path, names)
            if self._source.find_image(name, relative_to=self._path) is None:
                missing.append(frame)
            shapes = self._rejected.pop(frame, ImageShapes(self._path))
            numbers = self._frames.pop(frame, array("d"))
            for at in range(0, len(numbers), 7):
                number, track, line, *corners = numbers[at : at + 7]
                box = (corners[0], corners[1], corners[2], corners[3])
                field = f"track[{int(track)}].box"
                shapes.add(classes[int(number)], box, field=field, line=int(line), what="a box")
            row = shapes.build_row(self._source, name, frame=size, field=f"frame[{frame}]")
            if row is not None:
                yield row
        if missing:
            cause = (
                f"{len(missing):,} frames of tracks have no image, such as frame_{missing[0]:06d}"
            )
            report(
                make_finding(
                    "ImageMissing", file=self._path, field="track", cause=cause, fix=SAVE_IMAGES
                )
            )


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
