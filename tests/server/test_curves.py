"""Small curves of runs in a list."""

import json

import pytest

from runyard.server.services.runs.telemetry import curves
from tests.support import attempts
from tests.support.server import TestServer

pytestmark = pytest.mark.anyio


async def read_curve(server: TestServer, version: str) -> list[float]:
    found = await curves.read_curves(
        server.services, org=server.org, versions={"r1": version}, key="loss"
    )
    return list(found["r1"])


@pytest.mark.parametrize("count", [0, 1, 5, 24, 25, 700])
async def test_a_curve_has_few_points_and_ends_with_the_newest(
    server: TestServer, count: int
) -> None:
    attempt = await attempts.start(server)
    lines = [
        json.dumps({"n": step, "t": 1, "ev": "step", "step": step, "values": {"loss": 1000 - step}})
        for step in range(1, count + 1)
    ]
    await attempt.ship(*lines)
    curve = await read_curve(server, "v1")
    assert len(curve) == min(count, len(curve)) <= curves.POINTS
    assert curve == sorted(curve, reverse=True)
    if count:
        assert curve[-1] == 1000.0 - count
    if count > curves.POINTS:
        assert len(curve) >= curves.POINTS // 2


async def test_a_curve_is_kept_until_the_run_changes(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.event("step", step=1, totalSteps=9, values={"loss": 2.0})
    assert await read_curve(server, "v1") == [2.0]
    await attempt.event("step", step=2, totalSteps=9, values={"loss": 1.0})
    assert await read_curve(server, "v1") == [2.0]
    assert await read_curve(server, "v2") == [2.0, 1.0]
    assert len(server.services.curves) == 1
