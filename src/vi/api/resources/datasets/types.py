"""Arguments of ``client.datasets``. A plain string or dict does wherever one of these is asked for."""

import enum

import msgspec


class DatasetType(enum.StrEnum):
    """What is said of the pictures of a dataset."""

    PHRASE_GROUNDING = "phrase-grounding"
    VQA = "vqa"
    FREEFORM = "freeform"


class DatasetExportFormat(enum.StrEnum):
    """In which form a dataset goes out. ``ViFull`` and ``Parquet`` have the pictures in them, every format can."""

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
    """Options of an export.

    Attributes:
        normalized: boxes of the CSV formats as shares of the picture; else in pixels.
        split_ratio: the share of pictures in ``training/`` of ViFull; None writes one folder, ``dump/``.
        pictures: whether the pictures come along; None leaves it to the format, or to ``annotations_only``.
    """

    normalized: bool = True
    split_ratio: float | None = None
    pictures: bool | None = None


class DatasetExportSettings(msgspec.Struct, rename="camel", frozen=True):
    """What an export is to be."""

    format: DatasetExportFormat | str = DatasetExportFormat.VI_FULL
    options: DatasetExportOptions = DatasetExportOptions()
