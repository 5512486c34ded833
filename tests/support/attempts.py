"""Attempts as their supervisors see them, and the calls of controllers: claim and start."""

import hashlib
import json
from typing import Any

import httpx2

from tests.support.server import TestServer

Digest = str


class Attempt:
    """An attempt as its supervisor sees it."""

    def __init__(
        self, server: TestServer, client: httpx2.AsyncClient, assignment: dict[str, Any]
    ) -> None:
        self.server, self.client, self.assignment = server, client, assignment
        streams = ("events", "stdout", "stderr", "system", "samples")
        self.offsets = dict.fromkeys(streams, 0)

    async def post(self, name: str, **message: Any) -> httpx2.Response:
        return await self.client.post(f"/internal/v1/attempt/{name}", json=message)

    async def start(self) -> httpx2.Response:
        return await self.post("process", machine_id="m1", boot_id="b", pid=7, start_ticks=8)

    async def ship(
        self, *lines: str, stream: str = "events", offset: int | None = None
    ) -> httpx2.Response:
        begin = self.offsets[stream] if offset is None else offset
        end = begin + sum(len(line.encode()) + 1 for line in lines)
        answer = await self.post(
            "lines", stream=stream, offset=begin, next_offset=end, lines=list(lines)
        )
        if answer.status_code == 200:
            self.offsets[stream] = answer.json()["offset"]
        return answer

    async def event(self, name: str, **fields: Any) -> httpx2.Response:
        return await self.ship(json.dumps({"n": 1, "t": 1_700_000_000_500, "ev": name, **fields}))

    async def upload(self, content: bytes) -> Digest:
        digest = hashlib.sha256(content).hexdigest()
        answer = await self.client.put(f"/internal/v1/attempt/blobs/{digest}", content=content)
        assert answer.status_code == 201, answer.text
        return digest

    async def checkpoint(
        self, id: str = "epoch-1", *, content: bytes = b"weights", best: bool = True
    ) -> None:
        digest = await self.upload(content)
        files = [
            {"path": "model_full/model.safetensors", "size_bytes": len(content), "sha256": digest},
            {"path": "training_state/state.json", "size_bytes": len(content), "sha256": digest},
        ]
        step = int(id.rpartition("-")[2])
        answer = await self.post(
            "checkpoints",
            checkpoint_id=id,
            step=step,
            epoch=step,
            metrics={"exactMatch": 0.5},
            is_best=best,
            time=1_700_000_000_900,
            files=files,
        )
        assert answer.status_code == 201, answer.text

    async def out_of_memory(
        self, cause: str = "out of memory: the kernel ended the trainer"
    ) -> httpx2.Response:
        """Report that the kernel killed the trainer, as its supervisor does."""
        return await self.post(
            "finish",
            exit_code=None,
            signal="SIGKILL",
            group_empty=True,
            cause=cause,
            time=5,
            result=None,
        )

    async def lose_rank(self) -> httpx2.Response:
        """Report that one of several ranks was killed, as its supervisor does."""
        return await self.out_of_memory("a rank was lost: rank 1, killed by SIGKILL")

    async def finish(
        self, code: int | None = 0, *, empty: bool = True, **result: str
    ) -> httpx2.Response:
        return await self.post(
            "finish",
            exit_code=code,
            signal=None,
            group_empty=empty,
            cause=f"exit code {code}",
            time=5,
            result=result or None,
        )


async def claim(server: TestServer, claim_id: str = "c1", **changes: Any) -> Attempt:
    """Claim as the controller does a run that is there to be claimed."""
    attempt = await try_claim(server, claim_id, **changes)
    assert attempt is not None, "there was nothing to claim"
    return attempt


async def try_claim(server: TestServer, claim_id: str = "c1", **changes: Any) -> Attempt | None:
    """Claim as the controller does; None if no run was waiting."""
    controller = await server.client(server.controller_key)
    offer = {
        "claim_id": claim_id,
        "machine_id": "m1",
        "host": "here",
        "slots": 1,
        "wait_s": 0,
    } | changes
    answer = await controller.post("/internal/v1/claims", json=offer)
    assert answer.status_code == 200, answer.text
    assignment = answer.json()["assignment"]
    if assignment is None:
        return None
    return Attempt(server, await server.client(assignment["token"]), assignment)


async def start(
    server: TestServer, run_id: str = "r1", flow: dict[str, Any] | None = None
) -> Attempt:
    """Create, claim and start a run."""
    api = await server.api()
    created = await api.put(server.path(f"runs/{run_id}"), json={"spec": {"flow": flow or {}}})
    assert created.status_code == 201, created.text
    attempt = await claim(server, f"claim-{run_id}")
    assert (await attempt.start()).status_code == 200
    return attempt


async def read_condition(server: TestServer, run_id: str = "r1") -> tuple[str, str, str | None]:
    """Return condition, reason and message of a run."""
    api = await server.api()
    latest = (await api.get(server.path(f"runs/{run_id}"))).json()["status"]["conditions"][-1]
    return latest["condition"], latest["reason"], latest["message"]
