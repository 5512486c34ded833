"""The line at the bottom of every page: runs under way, machines, free disk space."""

import asyncio

import msgspec

from runyard.rundir import free_bytes
from runyard.server.http.request import Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.views import format_bytes, format_count
from runyard.server.services.runs import listing
from runyard.server.services.runs.filters import parse_filter


class StatusLine(msgspec.Struct, frozen=True, kw_only=True):
    """What the line shows. ``machines`` is empty where none is connected."""

    running: str
    queued: str
    machines: str
    disk: str


async def get_status(request: Request) -> Response:
    """Return the line at the bottom."""
    services, org = get_services(request), get_actor(request).org
    counted = await listing.count_runs(services, org=org, filter=parse_filter(""))
    connected = services.machines.list_connected(uptime_s=services.clock.monotonic_s())
    free = await asyncio.to_thread(free_bytes, services.settings.data_dir)
    count = len(connected)
    line = StatusLine(
        running=format_count(counted.conditions["Running"]),
        queued=format_count(counted.conditions["Pending"]),
        machines="" if not count else "1 machine" if count == 1 else f"{count} machines",
        disk=format_bytes(free),
    )
    return templates.render_fragment(request, "parts/_status.html", line)
