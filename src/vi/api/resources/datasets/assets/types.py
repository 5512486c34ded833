"""The arguments of ``client.assets`` under the name that other clients of this API have for them."""

from vi.api.resources.assets.types import AssetSortCriterion, SortCriterion, SortOrder

__all__ = ["AssetSortCriterion", "SortCriterion", "SortOrder"]
