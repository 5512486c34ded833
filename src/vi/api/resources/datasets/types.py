"""Argument types of ``client.datasets``; a plain string or dict is accepted in place of each."""

import enum

import msgspec


class DatasetType(enum.StrEnum):
    """Type of the records of a dataset."""

    PHRASE_GROUNDING = "phrase-grounding"
    VQA = "vqa"
    FREEFORM = "freeform"


class DatasetExportFormat(enum.StrEnum):
    """Format of an export.

    ``ViFull`` and ``Parquet`` include images by default; every format can.
    """

    VI_FULL = "ViFull"
    VI_JSONL = "ViJsonl"
    COCO = "Coco"
    PASCAL_VOC = "PascalVoc"
    YOLO_DARKNET = "YoloDarknet"
    YOLO_KERAS_PYTORCH = "YoloKerasPytorch"
    CSV_FOUR_CORNER = "CsvFourCorner"
    CSV_WIDTH_HEIGHT = "CsvWidthHeight"
    PARQUET = "Parquet"
    CONVERSATIONS = "Conversations"


class DatasetExportOptions(msgspec.Struct, rename="camel", frozen=True):
    """Options of an export.

    Attributes:
        normalized: Boxes of the CSV formats relative to the image size; else in pixels.
        split_ratio: Share of images in ``training/`` of ViFull; None writes one folder, ``dump/``.
        pictures: Include the images; None uses the default of the format or ``annotations_only``.
    """

    normalized: bool = True
    split_ratio: float | None = None
    pictures: bool | None = None


class DatasetExportSettings(msgspec.Struct, rename="camel", frozen=True):
    """Format and options of an export."""

    format: DatasetExportFormat | str = DatasetExportFormat.VI_FULL
    options: DatasetExportOptions = DatasetExportOptions()
