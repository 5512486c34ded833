"""When a machine is suspected, tested and excluded."""

from runyard.server.scheduling.machine_health import (
    FAILURES_WITHIN_MS,
    MachineHealth,
    record_failure,
    record_self_test,
)
from runyard.server.scheduling.view import RunKey

ONE, OTHER = RunKey("o", "one"), RunKey("o", "other")


def make_suspect() -> MachineHealth:
    health = record_failure(MachineHealth(), ONE, "lost", now_ms=0)
    return record_failure(health, OTHER, "SIGBUS", now_ms=1)


def test_two_faults_of_different_runs_within_an_hour_make_a_machine_suspect() -> None:
    health = record_failure(MachineHealth(), ONE, "lost", now_ms=0)
    assert health.state == "joined"
    assert record_failure(health, ONE, "lost", now_ms=1).state == "joined"
    assert record_failure(health, OTHER, "EIO", now_ms=FAILURES_WITHIN_MS + 1).state == "joined"
    suspect = record_failure(health, OTHER, "EIO", now_ms=FAILURES_WITHIN_MS)
    assert suspect.state == "suspect"
    assert suspect.reason == "EIO and lost in different runs within an hour"


def test_a_passed_self_test_forgets_the_faults() -> None:
    assert record_self_test(make_suspect(), has_passed=True) == MachineHealth()


def test_the_second_failed_self_test_excludes_for_good() -> None:
    once = record_self_test(make_suspect(), has_passed=False)
    assert once.state == "suspect"
    twice = record_self_test(once, has_passed=False, detail="matmul differs")
    assert twice.state == "excluded"
    assert twice.reason == "self-test failed 2 times: matmul differs"
    assert record_self_test(twice, has_passed=True) == twice
    assert record_failure(twice, ONE, "lost", now_ms=5).state == "excluded"


def test_a_self_test_of_a_trusted_machine_changes_nothing() -> None:
    assert record_self_test(MachineHealth(), has_passed=False) == MachineHealth()
