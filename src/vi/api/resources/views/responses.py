"""View documents: a view is a named filter, order and choice of columns of the list of runs."""

from typing import Literal

import msgspec

from vi.api.responses import Document, ResourceMetadata


class ViewSpec(Document):
    """Content of a view.

    ``filter`` and ``order_by`` are those of ``client.runs.list``; ``columns`` are the columns that
    the *Runs* page shows, all of them if the list is empty.
    """

    name: str = "Untitled"
    filter: str = ""
    order_by: str = ""
    columns: list[str] = []


class SavedView(Document):
    """Named filter, order and choice of columns of the list of runs."""

    kind: Literal["View"] = "View"
    organization_id: str = msgspec.field(name="workspaceId", default="")
    view_id: str = ""
    spec: ViewSpec = msgspec.field(default_factory=ViewSpec)
    metadata: ResourceMetadata = msgspec.field(default_factory=ResourceMetadata)
    self_link: str = ""
    etag: str = ""
