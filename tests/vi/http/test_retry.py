"""Conditions for repeating a request, and the delay before."""

from collections import Counter
from collections.abc import Callable

import pytest

from vi._http.retry import NO_RETRY, Failure, RetryPolicy, classify_status


def delay(
    failure: Failure,
    *,
    repeatable: bool = True,
    earlier: dict[Failure, int] | None = None,
    retry_after_s: float | None = None,
    random: Callable[[], float] = lambda: 1.0,
    policy: RetryPolicy = RetryPolicy(),
) -> float | None:
    return policy.delay_s(
        failure,
        repeatable=repeatable,
        earlier=Counter(earlier or {}),
        retry_after_s=retry_after_s,
        random=random,
    )


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (429, Failure.BUSY),
        (408, Failure.UNKNOWN),
        (500, Failure.UNKNOWN),
        (503, Failure.UNKNOWN),
        (301, Failure.REFUSED),
        (400, Failure.REFUSED),
        (404, Failure.REFUSED),
        (409, Failure.REFUSED),
    ],
)
def test_statuses_show_what_may_have_happened(status: int, failure: Failure) -> None:
    assert classify_status(status) is failure


def test_waits_double_up_to_the_cap() -> None:
    waits = [delay(Failure.BUSY, earlier={Failure.BUSY: number}) for number in range(8)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_waits_are_random_between_zero_and_the_doubled_base() -> None:
    earlier = {Failure.UNKNOWN: 2}
    assert [
        delay(Failure.UNKNOWN, earlier=earlier, random=random)
        for random in (lambda: 0.0, lambda: 0.5, lambda: 1.0)
    ] == [0, 2, 4]


def test_a_requested_wait_is_respected_but_capped() -> None:
    assert delay(Failure.BUSY, retry_after_s=7) == 7
    assert delay(Failure.BUSY, retry_after_s=86_400) == 60


@pytest.mark.parametrize(
    ("failure", "limit"), [(Failure.UNKNOWN, 3), (Failure.UNREACHED, 3), (Failure.BUSY, 20)]
)
def test_the_retry_budget_is_limited(failure: Failure, limit: int) -> None:
    assert delay(failure, earlier={failure: limit - 1}) is not None
    assert delay(failure, earlier={failure: limit}) is None


def test_rate_limits_do_not_use_up_the_retry_budget_for_failures() -> None:
    assert delay(Failure.UNKNOWN, earlier={Failure.BUSY: 15}) is not None


@pytest.mark.parametrize(
    ("failure", "is_repeated"),
    [
        (Failure.BUSY, True),
        (Failure.UNREACHED, True),
        (Failure.UNKNOWN, False),
        (Failure.REFUSED, False),
    ],
)
def test_an_unsafe_request_is_repeated_only_if_it_had_no_effect(
    failure: Failure, is_repeated: bool
) -> None:
    assert (delay(failure, repeatable=False) is not None) is is_repeated


@pytest.mark.parametrize("failure", list(Failure))
def test_no_retry_never_repeats(failure: Failure) -> None:
    assert delay(failure, policy=NO_RETRY) is None
