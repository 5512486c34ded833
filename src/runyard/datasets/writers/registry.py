"""The list of writers."""

from runyard.datasets.writers.base import Writer
from runyard.datasets.writers.coco import CocoWriter
from runyard.datasets.writers.conversations import ConversationsWriter
from runyard.datasets.writers.csv import CsvFourCornerWriter, CsvWidthHeightWriter
from runyard.datasets.writers.parquet import ParquetWriter
from runyard.datasets.writers.vi_full import ViFullWriter
from runyard.datasets.writers.vi_jsonl import ViJsonlWriter
from runyard.datasets.writers.voc import PascalVocWriter
from runyard.datasets.writers.yolo import YoloDarknetWriter, YoloKerasPytorchWriter

WRITERS: list[Writer] = [
    ViFullWriter(),
    ViJsonlWriter(),
    CocoWriter(),
    PascalVocWriter(),
    YoloKerasPytorchWriter(),
    YoloDarknetWriter(),
    CsvFourCornerWriter(),
    CsvWidthHeightWriter(),
    ParquetWriter(),
    ConversationsWriter(),
]


def find_writer(name: str) -> Writer | None:
    """Return the writer of a format; case is ignored."""
    return next((writer for writer in WRITERS if writer.name.lower() == name.lower()), None)
