"""Measures how soon ``client.runs.get`` reports a death:

``chaos --notice N``; false alarms: ``--starve SECONDS``.

For ``--notice`` a run trains and one of its processes is ended. The time is measured from the death
of the process until the run's document names the cause. The lease has its default length. For
``--starve`` a run trains next to twice as many spinning processes as cores, and must keep its
lease.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vi
from runyard import processes
from runyard.ports import Identity
from runyard.settings import Settings
from tests.chaos.faults import Fault, Repair, fail_fsync, find_missing_requirement, inject
from tests.chaos.instance import FLOW, ChaosInstance, wait_until_final
from vi.api.resources.runs.responses import Run

ENDLESS_STEPS = 10_000
TRAINS_WITHIN_S, NOTICED_WITHIN_S, DIES_WITHIN_S = 60.0, 60.0, 20.0
POLL_EVERY_S = 0.005
# What is ended, and the text that the run's document must then contain.
CASES = {
    "trainer SIGKILL": "killed by SIGKILL",
    "trainer SIGSEGV": "killed by SIGSEGV",
    "trainer exit 1": "exit code 1",
    "trainer out of memory": "out of memory",
    "supervisor SIGKILL": "the supervisor was lost",
    "supervisor and controller SIGKILL": "the supervisor was lost",
    "machine gone": "no report from",
}


def measure_detection(folder: Path, *, times: int, seed: int) -> dict[str, Any]:
    """Measure the seconds from a death to its cause in the run's document, per case."""
    instance = ChaosInstance(folder, seed=seed, environ={"RUNYARD_LEASE_S": str(Settings.lease_s)})
    found: list[str] = []
    seconds: dict[str, list[float]] = {}
    not_run: dict[str, str] = {}
    try:
        instance.start()
        with instance.client() as client:
            for case, words in CASES.items():
                if (reason := _find_missing_requirement(case, instance)) is not None:
                    not_run[case] = reason
                    continue
                for time_number in range(1, times + 1):
                    try:
                        seconds.setdefault(case, []).append(_measure(instance, client, case, words))
                    except (AssertionError, TimeoutError) as error:
                        found.append(f"{case}, time {time_number}: {error}")
                    print(
                        f"\r{case}: {time_number}/{times}, {len(found)} wrong  ",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
        return {"times": times, "notRun": not_run, **_summarize(seconds), "problems": found}
    finally:
        instance.close()


def _find_missing_requirement(case: str, instance: ChaosInstance) -> str | None:
    if case == "trainer exit 1":
        return find_missing_requirement("disk", "eio-trainer", instance)
    return (
        find_missing_requirement("memory", "trainer", instance)
        if case == "trainer out of memory"
        else None
    )


def _measure(instance: ChaosInstance, client: vi.Client, case: str, words: str) -> float:
    run_id = _start_run(instance, client)
    trainer, supervisor = instance.find_process("trainer"), instance.find_process("supervisor")
    assert trainer is not None and supervisor is not None, "nothing trains"
    repair: Repair | None = None
    try:
        repair = _end_process(instance, case, trainer, supervisor)
        victim = trainer if case.startswith("trainer") else supervisor
        _wait_until(lambda: processes.check_liveness(victim) == "dead", DIES_WITHIN_S, "the death")
        died_s = time.monotonic()
        _wait_until(
            lambda: words in _describe(client.runs.get(run_id)), NOTICED_WITHIN_S, f"{words!r}"
        )
        return time.monotonic() - died_s
    finally:
        if repair is not None:
            repair()
        instance.resume_restarts()
        with contextlib.suppress(vi.ViConflictError):
            client.runs.kill(run_id)
        wait_until_final(client, run_id, timeout_s=NOTICED_WITHIN_S)


def _end_process(
    instance: ChaosInstance, case: str, trainer: Identity, supervisor: Identity
) -> Repair | None:
    match case:
        case "trainer SIGKILL" | "trainer SIGSEGV":
            processes.send_signal(trainer, signal.Signals[case.split()[1]])
        case "trainer exit 1":
            return fail_fsync(instance, "trainer", which="1+")  # of every try, see SAVE_TRIES
        case "trainer out of memory":
            return inject(Fault("memory", "trainer", "Training", 1, 0), instance)
        case "supervisor SIGKILL":
            processes.send_signal(supervisor, signal.SIGKILL)
        case "supervisor and controller SIGKILL":
            instance.children["controller"].kill()
            processes.send_signal(supervisor, signal.SIGKILL)
        case "machine gone":
            instance.pause_restarts()
            instance.children["controller"].kill()
            processes.send_signal(supervisor, signal.SIGKILL)
    return None


def _start_run(instance: ChaosInstance, client: vi.Client) -> str:
    """Start a run, and wait for its first step; it would take many more."""
    flow = copy.deepcopy(FLOW)
    flow["blocks"][1]["settings"]["hyperparameters"]["maxSteps"] = ENDLESS_STEPS
    run_id = str(uuid.uuid4())
    client.runs.create(flow=flow, run_id=run_id)
    _wait_until(
        lambda: any(event.get("ev") == "step" for event in instance.list_events(run_id)),
        TRAINS_WITHIN_S,
        "the first step",
    )
    return run_id


def _describe(run: Run) -> str:
    """Return the causes of ended attempts and the newest condition's message."""
    return " ".join(
        [
            *(attempt.cause for attempt in run.status.attempts),
            run.status.conditions[-1].message or "",
        ]
    )


def _summarize(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        case: {
            "medianS": round(statistics.median(values), 2),
            "p99S": round(sorted(values)[math.ceil(0.99 * len(values)) - 1], 2),
            "maxS": round(max(values), 2),
        }
        for case, values in seconds.items()
    }


def run_starved(folder: Path, *, seconds: float, seed: int) -> dict[str, Any]:
    """Train next to twice as many spinning processes as cores; the lease must not be lost."""
    spinning: list[subprocess.Popen[bytes]] = []
    instance = ChaosInstance(folder, seed=seed, environ={"RUNYARD_LEASE_S": str(Settings.lease_s)})
    try:
        instance.start()
        with instance.client() as client:
            run_id = _start_run(instance, client)
            count = 2 * (os.cpu_count() or 1)
            spinning += [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)
            ]
            ends_at_s = time.monotonic() + seconds
            found: list[str] = []
            while time.monotonic() < ends_at_s and not found:
                run = client.runs.get(run_id)
                if (
                    len(run.status.attempts) != 1
                    or run.status.attempts[0].cause
                    or "heard" in _describe(run)
                ):
                    found.append(f"the lease was lost: {_describe(run)}")
                time.sleep(0.5)
            steps = sum(event.get("ev") == "step" for event in instance.list_events(run_id))
            return {"spinning": count, "seconds": seconds, "stepsTaken": steps, "problems": found}
    finally:
        for process in spinning:
            process.kill()
            process.wait()
        instance.close()


def _wait_until(is_true: Callable[[], Any], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(POLL_EVERY_S)
