"""Parquet and Arrow files that carry pictures: Hugging Face ``datasets`` on disk, and our own export.

What reads them is in arrow.py, apart, because pyarrow takes a third of a second to load and most imports need none.
"""

from collections.abc import Iterator

from runyard.datasets.findings import Say
from runyard.datasets.readers import Row
from runyard.datasets.records import DatasetType
from runyard.datasets.sources import Source

_ENDINGS = (".parquet", ".arrow")
_CACHE = "cache-"  # what ``datasets`` calls the results of map and filter, which it leaves beside the data
SIDE_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")  # what the tables' own schemas say as well


class Parquet:
    """Parquet shards, and the Arrow files of ``save_to_disk``."""

    name = "Parquet"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def claims(self, source: Source) -> list[str]:
        tables = [path for path in source.paths() if _is_table(path)]
        side = [path for path in source.paths() if path.rpartition("/")[2] in SIDE_FILES]
        return sorted([*tables, *side]) if tables else []

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        from runyard.datasets.readers.arrow import rows_of_files

        yield from rows_of_files(source, [path for path in files if _is_table(path)], task, say)


def _is_table(path: str) -> bool:
    name = path.lower().rpartition("/")[2]
    return name.endswith(_ENDINGS) and not name.startswith((_CACHE, ".", "_"))
