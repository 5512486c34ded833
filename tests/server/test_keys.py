"""Secret keys: their form, and which are accepted."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from runyard.security import key_format
from runyard.security.key_format import new_key, parse
from runyard.server.services.access import keys
from runyard.server.services.access.keys import Keyring, secret_mac

PEPPER = b"p" * 32


def row(key: str, **changes: object) -> SimpleNamespace:
    parts = parse(key)
    assert parts is not None
    values = {"org": "o", "role": "admin", "expires": None, "revoked": None} | changes
    return SimpleNamespace(id=parts.key_id, secret_mac=secret_mac(PEPPER, parts.secret), **values)


def test_a_key_has_the_form_that_the_published_client_accepts() -> None:
    key = new_key()
    assert key.startswith("dtvi_")
    assert len(key) == key_format.LENGTH == 103
    assert key.removeprefix("dtvi_").isalnum()
    assert key.isascii()


def test_a_valid_key_is_found_and_every_altered_one_is_not() -> None:
    key = new_key()
    ring = Keyring(PEPPER, [row(key)])
    found = ring.find(key, now_ms=5)
    assert found is not None
    assert found.org == "o"
    for position in (5, 7, 20, 23, 60, 96, 97, 102):
        other = "x" if key[position] != "x" else "y"
        assert ring.find(key[:position] + other + key[position + 1 :], now_ms=5) is None
    for wrong in (
        "",
        "dtvi_",
        key + "0",
        key[:-1],
        key.replace("dtvi_", "xxxx_"),
        new_key(),
        "ü" * 103,
    ):
        assert ring.find(wrong, now_ms=5) is None


def test_a_mistyped_key_is_refused_by_its_checksum_alone() -> None:
    key = new_key()
    swapped = key[:30] + key[31] + key[30] + key[32:] if key[30] != key[31] else key[:-1]
    assert parse(swapped) is None


def test_a_right_id_with_a_wrong_secret_is_refused() -> None:
    key, other = new_key(), new_key()
    body = key_format.VERSION + key[7:23] + other[23:97]
    forged = key_format.PREFIX + body + key_format._compute_checksum(body)
    assert parse(forged) is not None
    assert Keyring(PEPPER, [row(key)]).find(forged, now_ms=5) is None


def test_expired_and_revoked_keys_are_refused() -> None:
    key = new_key()
    assert Keyring(PEPPER, [row(key, expires=5)]).find(key, now_ms=4) is not None
    assert Keyring(PEPPER, [row(key, expires=5)]).find(key, now_ms=5) is None
    assert Keyring(PEPPER, [row(key, revoked=1)]).find(key, now_ms=5) is None


def test_an_unknown_id_takes_as_much_work_as_a_wrong_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted, not timed: only keyed hashes take enough time to distinguish ids."""
    key, other, calls = new_key(), new_key(), 0
    real = keys.secret_mac

    def count(pepper: bytes, secret: str) -> bytes:
        nonlocal calls
        calls += 1
        return real(pepper, secret)

    ring = Keyring(PEPPER, [row(key)])
    monkeypatch.setattr(keys, "secret_mac", count)
    body = key_format.VERSION + key[7:23] + other[23:97]
    wrong_secret, work = key_format.PREFIX + body + key_format._compute_checksum(body), []
    for text, reason in ((wrong_secret, "wrong secret"), (other, "unknown")):
        calls = 0
        assert ring.find(text, now_ms=5) is None
        assert ring.explain(text).reason == reason
        work.append(calls)
    assert work[0] == work[1] > 0


def test_another_pepper_invalidates_every_key() -> None:
    key = new_key()
    ring = Keyring(b"q" * 32, [row(key)])
    assert ring.find(key, now_ms=5) is None
    found = Keyring(PEPPER, [row(key)]).find(key, now_ms=5)
    assert found is not None
    assert replace(found, role="viewer").role == "viewer"
