"""Arguments of ``client.datasets``. A plain string or dict does wherever one of these is asked for."""

import enum

import msgspec


class DatasetType(enum.Enum):
    """What is said of the pictures of a dataset."""

    PHRASE_GROUNDING = "phrase-grounding"
    VQA = "vqa"
    FREEFORM = "freeform"


class DatasetExportFormat(enum.Enum):
    """In which form a dataset goes out. ``ViFull`` has the pictures in it, and every format can have them."""

    VI_FULL = "ViFull"
    VI_JSONL = "ViJsonl"
    COCO = "Coco"
    PASCAL_VOC = "PascalVoc"
    YOLO_DARKNET = "YoloDarknet"
    YOLO_KERAS_PYTORCH = "YoloKerasPytorch"
    CSV_FOUR_CORNER = "CsvFourCorner"
    CSV_WIDTH_HEIGHT = "CsvWidthHeight"
    PARQUET = "Parquet"


class DatasetExportOptions(msgspec.Struct, rename="camel", frozen=True):
    """``split_ratio`` is the share of pictures in ``training/``; None writes one folder, ``dump/``."""

    normalized: bool = True
    split_ratio: float | None = None


class DatasetExportSettings(msgspec.Struct, rename="camel", frozen=True):
    """What an export is to be."""

    format: DatasetExportFormat | str = DatasetExportFormat.VI_FULL
    options: DatasetExportOptions = DatasetExportOptions()
