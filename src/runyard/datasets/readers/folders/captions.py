"""Plain image folders: a text file per image, or a folder per class.

a.jpg a.txt            the text is the caption; also a.caption
cat/1.jpg dog/2.jpg    the folder's name is the caption, or the answer; see class_folders.py
"""

from collections.abc import Iterator

from runyard.datasets.findings import ReportFinding
from runyard.datasets.images import is_image_name
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.readers.columns import Table, build_rows
from runyard.datasets.readers.folders.class_folders import find_class_folders, is_document
from runyard.datasets.readers.lines import open_text
from runyard.datasets.readers.locations import SourceLocation
from runyard.datasets.readers.shards.keys import IMAGE_ENDINGS
from runyard.datasets.readers.tables.row_forms import find_tables
from runyard.datasets.readers.text_labels.text_kinds import find_text_kinds, list_side_files
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_CAPTION = ".caption"
_MAX_TEXT = 1 << 20


class CaptionsReader:
    """The reader of text files and class folders."""

    name = "Captions"
    types: tuple[DatasetType, ...] = ("vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        side = _find_side_files(source)
        if side and find_tables(source):
            return []  # a table counts more than the texts next to the images
        return side or find_class_folders(source).files

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        folders, texts = None, Table()
        for file in files:
            location = SourceLocation(file, report)
            if is_image_name(file):
                folders = folders or find_class_folders(source)
                yield from folders.read_image(source, location, task)
            elif not source.size_bytes(file):
                location.report("FileEmpty", "the file has no bytes", action="FileRejected", rows=1)
            else:
                yield from _read_side_file(source, location, task, texts)
        texts.report_collected()
        if folders is not None:
            folders.report(report)


def _find_side_files(source: Source) -> list[str]:
    """Find text files named like an image, unless most of them are labels.

    If there are any, other texts are captions of missing images, apart from documents.
    """
    texts = list_side_files(source)
    kinds = find_text_kinds(source)
    if not kinds.are_captions(texts):
        texts = []
    stems = {path.rpartition(".")[0] for path in source.paths() if is_image_name(path)}
    texts += [
        path
        for path in source.paths()
        if path.lower().endswith(_CAPTION) and path[: -len(_CAPTION)] in stems
    ]
    known = {*texts, *find_tables(source)}
    orphans = [
        path
        for path, form in kinds.forms.items()
        if form.kind == "other" and path not in known and not is_document(path)
    ]
    return sorted([*texts, *orphans]) if texts else []


def _read_side_file(
    source: Source, location: SourceLocation, task: DatasetType, table: Table
) -> Iterator[Row]:
    if source.size_bytes(location.file) > _MAX_TEXT:
        location.report(
            "FileUnreadable",
            f"a caption of more than {_MAX_TEXT:,} bytes is not supported",
            action="FileRejected",
            rows=1,
        )
        return
    form = find_text_kinds(source).forms.get(location.file)
    if form is not None and form.is_certain:
        cause = "it has boxes, but most of the text files are captions"
        location.report("ContentsUnfit", cause, action="FileRejected", rows=1)
        return
    with open_text(source, location.file) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        location.report(
            "EncodingWrong", f"byte {error.start + 1} is not UTF-8", action="FileRejected", rows=1
        )
        return
    name = _find_image_name(source, location.file.rpartition(".")[0])
    image = source.find_image(name)
    yield from build_rows(
        {"text": text}, location, task, table, name=name, image=image, identity=location.file
    )


def _find_image_name(source: Source, stem: str) -> str:
    """Return the path of the image next to a text file, without extension if it has several."""
    endings = [ending for one in IMAGE_ENDINGS for ending in (one, one.upper())]
    names = [f"{stem}.{ending}" for ending in endings if source.is_image(f"{stem}.{ending}")]
    return names[0] if len(names) == 1 else stem
