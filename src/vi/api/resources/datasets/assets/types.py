"""Argument types of ``client.assets`` under the module path of other clients of this API."""

from vi.api.resources.assets.types import AssetSortCriterion, SortCriterion, SortOrder

__all__ = ["AssetSortCriterion", "SortCriterion", "SortOrder"]
