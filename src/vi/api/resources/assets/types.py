"""Argument types of ``client.assets``; a plain string or dict is accepted in place of each."""

import enum

import msgspec


class SortCriterion(enum.StrEnum):
    """Sort key of images."""

    DEFAULT = "default"
    ASSET_ID = "assetId"
    FILENAME = "filename"
    LAST_MODIFIED_CONTENTS = "lastModified.contents"
    METADATA_FILE_SIZE = "metadata.fileSize"


class SortOrder(enum.StrEnum):
    """Ascending or descending order."""

    ASC = "asc"
    DESC = "desc"


class AssetSortCriterion(msgspec.Struct, frozen=True):
    """Sort key and order."""

    criterion: SortCriterion | str = SortCriterion.DEFAULT
    order: SortOrder | str = SortOrder.ASC
