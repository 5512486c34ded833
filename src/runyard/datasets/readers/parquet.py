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


class Parquet:
    """Parquet shards, and the Arrow files of ``save_to_disk``."""

    name = "Parquet"
    types: tuple[DatasetType, ...] = ("phrase-grounding", "vqa", "freeform")

    def claims(self, source: Source) -> list[str]:
        return [path for path in source.paths() if _is_table(path.lower().rpartition("/")[2])]

    def read(self, source: Source, files: list[str], task: DatasetType, say: Say) -> Iterator[Row]:
        from runyard.datasets.readers.arrow import rows_of_files

        yield from rows_of_files(source, files, task, say)


def _is_table(name: str) -> bool:
    return name.endswith(_ENDINGS) and not name.startswith((_CACHE, ".", "_"))
