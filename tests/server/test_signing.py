"""Page tokens, links and attempt tokens: valid only if signed here, and only for their purpose."""

import pytest

from runyard.server.services.access.secrets import Secrets
from runyard.server.services.access.signing import AttemptToken, Link, Position, Signer, link_expiry

HOUR_MS = 3_600_000
SIGNER = Signer(Secrets(pepper=b"p", signing_id="2", signing={"1": b"old", "2": b"new"}))
POSITION = Position(5, "r1")
LINK = Link("o", "r", "epoch-1", "ab" * 32, 99)


def test_a_page_token_restores_its_position() -> None:
    token = SIGNER.sign_page_token(POSITION, org="o", question="runs")
    assert SIGNER.verify_page_token(token, org="o", question="runs") == POSITION


@pytest.mark.parametrize(("org", "question"), [("p", "runs"), ("o", "flows"), ("o", "runs ")])
def test_a_page_token_is_valid_only_for_its_organization_and_query(org: str, question: str) -> None:
    token = SIGNER.sign_page_token(POSITION, org="o", question="runs")
    assert SIGNER.verify_page_token(token, org=org, question=question) is None


def test_every_changed_byte_is_detected() -> None:
    token = SIGNER.sign_page_token(POSITION, org="o", question="runs")
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        assert (
            SIGNER.verify_page_token(
                token[:position] + other + token[position + 1 :], org="o", question="runs"
            )
            is None
        )


@pytest.mark.parametrize(
    "token", ["", ".", "..", "2..", "x", "2.W10.AAAA", "9.W10.AAAA", "ä.ö.ü", "2.W10.=", "a.b.c"]
)
def test_forged_tokens_are_refused(token: str) -> None:
    assert SIGNER.verify_page_token(token, org="o", question="runs") is None
    assert SIGNER.verify_link(token) is None
    assert SIGNER.verify_attempt_token("ryat_" + token) is None


def test_a_token_is_valid_for_one_purpose_only() -> None:
    link = SIGNER.sign_link(LINK)
    assert SIGNER.verify_link(link) == LINK
    assert SIGNER.verify_page_token(link, org="o", question="") is None
    assert SIGNER.verify_attempt_token("ryat_" + link) is None
    attempt = SIGNER.sign_attempt_token(AttemptToken("o", "e", 3))
    assert SIGNER.verify_attempt_token(attempt) == AttemptToken("o", "e", 3)
    assert SIGNER.verify_link(attempt.removeprefix("ryat_")) is None


def test_an_old_signing_key_still_verifies_and_a_removed_one_does_not() -> None:
    old = Signer(Secrets(pepper=b"p", signing_id="1", signing={"1": b"old"})).sign_link(LINK)
    assert SIGNER.verify_link(old) == LINK
    assert (
        Signer(Secrets(pepper=b"p", signing_id="2", signing={"2": b"new"})).verify_link(old) is None
    )


def test_links_made_within_an_hour_are_equal_and_live_as_long_as_promised() -> None:
    first = link_expiry(7 * HOUR_MS, link_hours=24)
    assert link_expiry(8 * HOUR_MS - 1, link_hours=24) == first
    assert link_expiry(8 * HOUR_MS, link_hours=24) == first + HOUR_MS
    assert first - (8 * HOUR_MS - 1) >= 24 * HOUR_MS
