"""Parquet and Arrow files with images: Hugging Face ``datasets`` on disk, and our own export.

The reading itself is in arrow.py, because pyarrow takes a third of a second to load and most
imports do not need it.
"""

from collections.abc import Iterator

from runyard.datasets.findings import ReportFinding
from runyard.datasets.options import DEFAULT_OPTIONS, ReadOptions
from runyard.datasets.readers.base import Row
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_ENDINGS = (".parquet", ".arrow")
# Prefix of cached results of map and filter, which ``datasets`` keeps next to the data.
_CACHE = "cache-"
# Redundant with the tables' own schemas.
SIDE_FILES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")


class ParquetReader:
    """The reader of Parquet shards and the Arrow files of ``save_to_disk``."""

    name = "Parquet"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def detect(self, source: Source) -> list[str]:
        duplicates = find_shard_metadata(source)
        tables = [path for path in source.paths() if _is_table(path) and path not in duplicates]
        side = [path for path in source.paths() if path.rpartition("/")[2] in SIDE_FILES]
        return sorted([*tables, *side]) if tables else []

    def read(
        self,
        source: Source,
        files: list[str],
        task: DatasetType,
        report: ReportFinding,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Iterator[Row]:
        from runyard.datasets.readers.arrow import read_files

        yield from read_files(
            source, [path for path in files if _is_table(path)], task, report, options
        )


def _is_table(path: str) -> bool:
    name = path.lower().rpartition("/")[2]
    return name.endswith(_ENDINGS) and not name.startswith((_CACHE, ".", "_"))


def find_shard_metadata(source: Source) -> set[str]:
    """Find the tables and statistics that img2dataset writes next to its shards.

    ``00000.parquet`` and ``00000_stats.json`` repeat the captions of ``00000.tar``, or those of
    the files in the folder ``00000``, and hold no images.
    """
    paths = set(source.paths())
    found = set()
    for path in paths:
        stem = path.removesuffix(".parquet")
        if stem != path and (
            any(stem + ending in paths for ending in (".tar", ".tar.gz"))
            or (f"{stem}_stats.json" in paths and any(p.startswith(f"{stem}/") for p in paths))
        ):
            found |= {path, f"{stem}_stats.json"} & paths
    return found
