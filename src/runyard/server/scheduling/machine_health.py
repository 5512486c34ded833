"""When a machine is no longer trusted, as a pure state machine.

    joined  --two failures of different runs within 1 h-->  suspect
    suspect  --self-test passed-->  joined
    suspect  --self-test failed twice in a row-->  excluded, until a person resets it

A failure is an attempt's end that the machine caused: lost, SIGBUS or SIGSEGV, a CUDA or NCCL
error, EIO. Two failures of one run may be the run's own doing, and do not count as two.
"""

from dataclasses import dataclass, replace
from typing import Literal

from runyard.server.scheduling.view import RunKey

FAILURES_WITHIN_MS = 3_600_000
MAX_FAILED_TESTS = 2


@dataclass(frozen=True, slots=True)
class MachineHealth:
    """State of one machine, with the failures of the last hour as (time, run, kind)."""

    state: Literal["joined", "suspect", "excluded"] = "joined"
    failures: tuple[tuple[int, RunKey, str], ...] = ()
    failed_tests: int = 0
    reason: str = ""


def record_failure(health: MachineHealth, run: RunKey, kind: str, *, now_ms: int) -> MachineHealth:
    """Return the health after a failure of a run that the machine caused."""
    recent = tuple(
        failure for failure in health.failures if now_ms - failure[0] <= FAILURES_WITHIN_MS
    )
    health = replace(health, failures=(*recent, (now_ms, run, kind)))
    if health.state != "joined" or len({failure[1] for failure in health.failures}) < 2:
        return health
    kinds = " and ".join(sorted({failure[2] for failure in health.failures}))
    return replace(health, state="suspect", reason=f"{kinds} in different runs within an hour")


def record_self_test(health: MachineHealth, *, has_passed: bool, detail: str = "") -> MachineHealth:
    """Return the health after a self-test. A machine that is not suspect stays as it is."""
    if health.state != "suspect":
        return health
    if has_passed:
        return MachineHealth()
    failed = health.failed_tests + 1
    if failed < MAX_FAILED_TESTS:
        return replace(health, failed_tests=failed)
    reason = f"self-test failed {failed} times" + (f": {detail}" if detail else "")
    return replace(health, state="excluded", failed_tests=failed, reason=reason)
