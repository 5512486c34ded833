"""The table of a run's transitions, without a server."""

import itertools

import pytest

from runyard.protocol import ExitReport
from runyard.server.services.runs import conditions
from runyard.server.services.runs.conditions import (
    LEGAL,
    REASONS,
    AttemptEnd,
    IllegalTransition,
    Transition,
    apply_transition,
    decide_after_exit,
)
from vi.api.responses import ConditionKind, ResourceCondition

K = ConditionKind
FINAL = [K.SUCCEEDED, K.FAILED, K.ERROR, K.CANCELLED]
PATHS = {
    K.PENDING: [K.PENDING],
    K.RUNNING: [K.PENDING, K.RUNNING],
    **{kind: [K.PENDING, K.RUNNING, kind] for kind in FINAL},
}


def history(*kinds: ConditionKind) -> list[ResourceCondition]:
    return [
        ResourceCondition(condition=kind, reason=REASONS[kind][0], last_transition_time=1)
        for kind in kinds
    ]


@pytest.mark.parametrize(("start", "end"), list(itertools.product(list(REASONS), list(REASONS))))
def test_every_pair_of_states_follows_the_transition_table(
    start: ConditionKind, end: ConditionKind
) -> None:
    before = history(*PATHS[start])
    decided = Transition(end, REASONS[end][0], "why")
    if start in FINAL:
        assert (
            apply_transition(before, decided, now_ms=9) == before
        )  # the first final condition stays
    elif start is end:
        after = apply_transition(before, decided, now_ms=9)
        assert len(after) == len(before)
        assert (after[-1].message, after[-1].last_transition_time) == ("why", 1)
    elif end in LEGAL[start]:
        after = apply_transition(before, decided, now_ms=9)
        assert after[:-1] == before
        assert (after[-1].condition, after[-1].last_transition_time) == (end, 9)
    else:
        with pytest.raises(IllegalTransition):
            apply_transition(before, decided, now_ms=9)


def test_a_history_begins_with_pending() -> None:
    assert apply_transition([], Transition(K.PENDING, "Queued"), now_ms=1)[0].condition is K.PENDING
    with pytest.raises(IllegalTransition):
        apply_transition([], Transition(K.RUNNING, "Training"), now_ms=1)


@pytest.mark.parametrize("kind", [kind for kind in ConditionKind if kind.is_final])
def test_an_ended_history_accepts_no_further_condition(kind: ConditionKind) -> None:
    history = [
        ResourceCondition(
            condition=kind, last_transition_time=1, reason=REASONS[kind][0], message=""
        )
    ]
    for transition in (Transition(kind, "Stopping"), Transition(conditions.RUNNING, "Stopping")):
        assert apply_transition(history, transition, now_ms=2) == history


def test_a_reason_that_no_page_documents_raises() -> None:
    with pytest.raises(IllegalTransition, match="Thinking"):
        apply_transition(history(K.PENDING), Transition(K.RUNNING, "Thinking"), now_ms=1)


def report(
    code: int | None = 0, signal: str | None = None, outcome: str = "", reason: str = ""
) -> ExitReport:
    result = {"outcome": outcome, "reason": reason, "message": "as reported"} if outcome else None
    return ExitReport(
        exit_code=code, signal=signal, group_empty=True, cause="the cause", time=1, result=result
    )


def end(*, killed: bool = False, used: int = 1, checkpoint: bool = True) -> AttemptEnd:
    return AttemptEnd(killed=killed, tries_used=used, tries_allowed=3, has_checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("exit_report", "at", "kind", "reason"),
    [
        (report(0, outcome="Succeeded", reason="Completed"), end(), K.SUCCEEDED, "Completed"),
        (report(0, outcome="Succeeded", reason="EarlyStopped"), end(), K.SUCCEEDED, "EarlyStopped"),
        (report(0, outcome="Succeeded", reason="???"), end(), K.SUCCEEDED, "Completed"),
        # A result on disk counts, however the process ended afterwards.
        (report(None, "SIGKILL", outcome="Succeeded"), end(used=3), K.SUCCEEDED, "Completed"),
        (report(0, outcome="Succeeded"), end(checkpoint=False), K.ERROR, "StorageUnavailable"),
        (report(1, outcome="Failed", reason="Diverged"), end(), K.FAILED, "Diverged"),
        (report(1, outcome="Failed", reason="OutOfMemory"), end(), K.FAILED, "OutOfMemory"),
        (report(1, outcome="Failed", reason="???"), end(), K.FAILED, "TrainerError"),
        (report(64, outcome="Failed", reason="InvalidData"), end(), K.FAILED, "InvalidData"),
        (report(64), end(), K.FAILED, "TrainerError"),
        (report(75), end(), K.PENDING, "Retrying"),
        (report(75), end(used=3), K.PENDING, "Retrying"),
        (report(75), end(killed=True), K.CANCELLED, "KilledByUser"),
        (report(75, outcome="Stopped"), end(killed=True), K.CANCELLED, "KilledByUser"),
        (report(None, "SIGKILL"), end(killed=True), K.CANCELLED, "KilledByUser"),
        (
            report(1, outcome="Failed", reason="TrainerError"),
            end(killed=True),
            K.CANCELLED,
            "KilledByUser",
        ),
        (report(None, "SIGSEGV"), end(used=1), K.PENDING, "Retrying"),
        (report(1), end(used=2), K.PENDING, "Retrying"),
        (report(1), end(used=3), K.ERROR, "WorkerLost"),
        # Done, says the code, but there is no result.
        (
            report(0),
            end(used=3),
            K.ERROR,
            "WorkerLost",
        ),  # the exit code means success, but there is no result
    ],
)
def test_the_condition_of_a_run_follows_from_the_end_of_its_attempt(
    exit_report: ExitReport, at: AttemptEnd, kind: ConditionKind, reason: str
) -> None:
    decided = decide_after_exit(exit_report, at)
    assert (decided.kind, decided.reason) == (kind, reason)
    assert decided.kind in conditions.LEGAL[K.RUNNING]
    assert decided.reason in REASONS[decided.kind]
    assert decided.message


def test_only_a_requested_stop_is_not_charged() -> None:
    assert not conditions.is_charged(report(75))
    assert all(conditions.is_charged(report(code)) for code in (0, 1, 64, None))


def test_a_lost_rank_is_not_charged_if_the_attempt_got_further() -> None:
    lost = ExitReport(
        exit_code=None, signal="SIGKILL", group_empty=True, cause="a rank was lost: rank 1", time=1
    )
    assert not conditions.is_charged(lost, has_progress=True)
    assert conditions.is_charged(lost, has_progress=False)
    assert conditions.is_charged(report(None, "SIGKILL"), has_progress=True)
    free = AttemptEnd(
        killed=False, tries_used=0, tries_allowed=3, has_checkpoint=True, is_charged=False
    )
    decided = decide_after_exit(lost, free)
    assert (decided.kind, decided.reason) == (K.PENDING, "Retrying")
    assert (decided.message or "").startswith("a rank was lost: rank 1; it had saved")


KILLED = "out of memory: the kernel ended the trainer while it was Training"
LOST = "the supervisor was lost, and the kernel has run out of memory since it began"


def short_of_memory(cause: str = KILLED) -> ExitReport:
    return ExitReport(exit_code=None, signal="SIGKILL", group_empty=True, cause=cause, time=1)


def with_micro_batch(size: int | None, *, killed: bool = False, used: int = 1) -> AttemptEnd:
    """An attempt that trained with ``size``; None where the flow does not let it shrink."""
    return AttemptEnd(
        killed=killed, tries_used=used, tries_allowed=3, has_checkpoint=True, micro_batch_size=size
    )


def test_a_trainer_killed_out_of_memory_is_retried_only_if_it_may_shrink() -> None:
    decided = decide_after_exit(short_of_memory(), with_micro_batch(None))
    assert (decided.kind, decided.reason) == (K.FAILED, "OutOfMemory")
    assert (decided.message or "").startswith(f"{KILLED}; try: give the machine more memory")
    assert "hyperparameters.microBatchSize" in (decided.message or "")
    assert conditions.is_charged(short_of_memory())


def test_a_run_that_may_shrink_halves_the_micro_batch_down_to_one() -> None:
    size, sizes = 12, []
    while (smaller := conditions.halve_micro_batch(short_of_memory(), size)) is not None:
        decided = decide_after_exit(short_of_memory(), with_micro_batch(size, used=3))
        assert (decided.kind, decided.reason) == (K.PENDING, "Retrying")
        assert decided.message == (
            f"out of memory with microBatchSize {size} (the kernel ended the trainer while it was "
            f"Training); resuming with {smaller} at the same batch size"
        )
        assert not conditions.is_charged(short_of_memory(), micro_batch_size=size)
        size = smaller
        sizes.append(size)
    assert sizes == [6, 3, 1]
    decided = decide_after_exit(short_of_memory(), with_micro_batch(1))
    assert (decided.kind, decided.reason) == (K.FAILED, "OutOfMemory")
    assert f"{KILLED}, with microBatchSize 1, the smallest; try: give" in (decided.message or "")
    assert conditions.is_charged(short_of_memory(), micro_batch_size=1)


def test_a_kill_or_a_result_outranks_running_out_of_memory() -> None:
    assert (
        decide_after_exit(short_of_memory(), with_micro_batch(8, killed=True)).kind is K.CANCELLED
    )
    done = report(None, "SIGKILL", outcome="Succeeded")
    done.cause = KILLED
    assert decide_after_exit(done, with_micro_batch(8)).kind is K.SUCCEEDED


def test_an_out_of_memory_kill_of_an_unknown_process_shrinks_and_uses_an_attempt() -> None:
    decided = decide_after_exit(short_of_memory(LOST), with_micro_batch(8))
    assert (decided.kind, decided.reason) == (K.PENDING, "Retrying")
    assert (decided.message or "").endswith(f"{LOST}; resuming with microBatchSize 4 instead of 8")
    assert conditions.is_charged(short_of_memory(LOST), micro_batch_size=8)
    assert decide_after_exit(short_of_memory(LOST), with_micro_batch(8, used=3)).kind is K.ERROR
    plain = decide_after_exit(short_of_memory(LOST), with_micro_batch(None))
    assert (plain.kind, "resuming" in (plain.message or "")) == (K.PENDING, False)
