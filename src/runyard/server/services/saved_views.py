"""Saved views: named filters of the list of runs, shared by everyone of the organization."""

from runyard.server.services.documents import DocumentKind
from runyard.server.services.runs.filters import parse_filter
from runyard.server.services.runs.listing import parse_order
from runyard.store.tables import saved_views
from vi.api.resources.views.responses import SavedView, ViewSpec

VIEW = DocumentKind(
    "view",
    "view",
    "views",
    saved_views,
    SavedView,
    lambda org, id: SavedView(
        organization_id=org, view_id=id, self_link=f"/workspaces/{org}/views/{id}"
    ),
)


def check_spec(spec: ViewSpec) -> ViewSpec:
    """Return the spec, if the list of runs accepts its filter and order.

    Raises:
        Refusal: InvalidFilter, InvalidQuery.
    """
    parse_filter(spec.filter)
    if spec.order_by:
        parse_order(spec.order_by)
    return spec
