"""A real trainer that the kernel kills out of memory, as clients see its run."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vi
from runyard import rundir

MEMORY = Path("/sys/fs/cgroup/memory")
BLOCKS: dict[str, Any] = {
    "name": "Short of memory",
    "blocks": [
        {"block": "vi-dataset", "settings": {"maxSamples": 96}},
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {
                    "epochs": 100,
                    "maxSteps": 120,
                    "batchSize": 8,
                    "microBatchSize": 8,
                },
                "checkpoint": {"every": {"steps": 20}},
                "validation": {"every": {"steps": 1000000}, "maxSamples": 8},
                "onOutOfMemory": "shrink",
            },
        },
    ],
}


@pytest.fixture
def too_little_memory() -> Iterator[Callable[[int], None]]:
    """Move a process to a cgroup with 1 MiB."""
    group = MEMORY / f"runyard-memory-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 to write to: {error}")
    yield lambda pid: _write(group / "cgroup.procs", str(pid))
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.slow
@pytest.mark.usefixtures("memory_kills")
def test_a_run_resumes_with_half_the_micro_batch_after_an_out_of_memory_kill(
    client: vi.Client,
    instance: Any,
    finished_run: Any,
    too_little_memory: Callable[[int], None],
    eventually: Any,
) -> None:
    run = client.runs.create(flow=BLOCKS)
    folder = rundir.AttemptDir.locate(
        instance.data_dir / "runs", instance.organization_id, run.run_id, 1
    ).path
    eventually(lambda: rundir.list_checkpoints(folder), timeout_s=60, what="the first checkpoint")
    process = rundir.read_json(rundir.AttemptDir(folder).process)
    assert process is not None
    too_little_memory(process["trainer"]["pid"])
    ended = client.runs.wait(run.run_id, timeout=120, show_progress=False)
    assert [entry.condition.value for entry in ended.status.conditions] == [
        "Pending",
        "Running",
        "Pending",
        "Running",
        "Succeeded",
    ]
    retrying = ended.status.conditions[2]
    # An entry keeps its newest reason.
    assert retrying.reason in ("Retrying", "WaitingForWorker")
    first, second = ended.status.attempts
    assert (first.signal, first.micro_batch_size, second.micro_batch_size) == ("SIGKILL", 8, 4)
    assert first.cause.startswith("out of memory: the kernel ended the trainer while it was ")
    assert ended.status.micro_batch_limit == 4
    assert ended.status.plan is not None
    assert (
        ended.status.plan["microBatchSize"]["value"],
        ended.status.plan["batchSize"]["value"],
    ) == (4, 8)
    steps = [point.step for point in client.runs.metrics(run.run_id) if "loss" in point.values]
    assert sorted(set(steps)) == list(range(1, 121))
