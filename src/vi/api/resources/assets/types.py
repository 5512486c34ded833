"""Arguments of ``client.assets``. A plain string or dict does wherever one of these is asked for."""

import enum

import msgspec


class SortCriterion(enum.StrEnum):
    """By what pictures are sorted."""

    DEFAULT = "default"
    ASSET_ID = "assetId"
    FILENAME = "filename"
    LAST_MODIFIED_CONTENTS = "lastModified.contents"
    METADATA_FILE_SIZE = "metadata.fileSize"


class SortOrder(enum.StrEnum):
    """Smallest first, or largest."""

    ASC = "asc"
    DESC = "desc"


class AssetSortCriterion(msgspec.Struct, frozen=True):
    """By what, and which end first."""

    criterion: SortCriterion | str = SortCriterion.DEFAULT
    order: SortOrder | str = SortOrder.ASC
