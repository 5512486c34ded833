"""The list of writers."""

from runyard.datasets.writers.base import Writer
from runyard.datasets.writers.coco import Coco
from runyard.datasets.writers.csv import CsvFourCorner, CsvWidthHeight
from runyard.datasets.writers.parquet import Parquet
from runyard.datasets.writers.vi_full import ViFull
from runyard.datasets.writers.vi_jsonl import ViJsonl
from runyard.datasets.writers.voc import PascalVoc
from runyard.datasets.writers.yolo import YoloDarknet, YoloKerasPytorch

WRITERS: list[Writer] = [
    ViFull(),
    ViJsonl(),
    Coco(),
    PascalVoc(),
    YoloKerasPytorch(),
    YoloDarknet(),
    CsvFourCorner(),
    CsvWidthHeight(),
    Parquet(),
]


def find_writer(name: str) -> Writer | None:
    """Return the writer of a format; case is ignored."""
    return next((writer for writer in WRITERS if writer.name.lower() == name.lower()), None)
