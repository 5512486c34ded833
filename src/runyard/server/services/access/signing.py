"""What the server signs so that it comes back unchanged: page tokens, download links, attempt tokens.

Each purpose has a context of its own in the signature, so that one can never pass for another. Old signing keys still
verify, which lets an operator rotate them without breaking links in flight.
"""

import base64
import hmac
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from runyard.server.services.access.secrets import Secrets

T = TypeVar("T")

ATTEMPT_TOKEN_PREFIX = "ryat_"  # noqa: S105 - not a secret
SIGNATURE_BYTES = 24
LINK_STEP_MS = 3600 * 1000


class Position(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Where a page ended: the last item's time and id."""

    time_ms: int
    id: str


class Link(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a download link opens: one archive, known by its hash, until ``expires_at``."""

    org: str
    run_id: str
    output_id: str
    sha256: str
    expires_at: int


class FileLink(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a download link opens: the bytes of a picture or of an export, as long as the row that names them stands.

    ``kind`` is ``asset`` or ``export``, ``id`` its id; ``content`` is the SHA-256 of what it held when the link was
    made.
    """

    org: str
    dataset_id: str
    kind: str
    id: str
    content: str
    expires_at: int


class UploadLink(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Where a file of an import goes: packs under their hashes (number 0), or one announced file, or a part of it."""

    org: str
    dataset_id: str
    import_id: str
    number: int
    part: int
    expires_at: int


@dataclass(frozen=True)
class AttemptToken:
    """Which attempt a supervisor speaks for. ``(epoch, number)`` is never given out twice."""

    org: str
    epoch: str
    number: int


class Signer:
    """Signs and verifies with the deployment's signing keys."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def page_token(self, position: Position, *, org: str, question: str) -> str:
        """An opaque token, good only for the same question of the same organisation."""
        return self._sign("page", msgspec.json.encode(position), f"{org}\n{question}")

    def position(self, token: str, *, org: str, question: str) -> Position | None:
        """The position in a token; None when it was not ours, or was made for another question."""
        payload = self._verify("page", token, f"{org}\n{question}")
        return None if payload is None else _decoded(payload, Position)

    def link(self, link: Link) -> str:
        return self._sign("download:GET,HEAD", msgspec.json.encode(link), "")

    def opened(self, token: str) -> Link | None:
        """What a link opens, whether or not it has expired; None when it was not ours."""
        payload = self._verify("download:GET,HEAD", token, "")
        return None if payload is None else _decoded(payload, Link)

    def file_link(self, link: FileLink) -> str:
        return self._sign("file:GET,HEAD", msgspec.json.encode(link), "")

    def opened_file(self, token: str) -> FileLink | None:
        """What a link to a file opens, whether or not it has expired; None when it was not ours."""
        payload = self._verify("file:GET,HEAD", token, "")
        return None if payload is None else _decoded(payload, FileLink)

    def upload(self, link: UploadLink) -> str:
        return self._sign("upload:PUT", msgspec.json.encode(link), "")

    def opened_upload(self, token: str) -> UploadLink | None:
        """What an upload address is for, whether or not it has expired; None when it was not ours."""
        payload = self._verify("upload:PUT", token, "")
        return None if payload is None else _decoded(payload, UploadLink)

    def attempt_token(self, token: AttemptToken) -> str:
        payload = f"{token.org}.{token.epoch}.{token.number}"
        return ATTEMPT_TOKEN_PREFIX + self._sign("attempt", payload.encode(), "")

    def attempt(self, text: str) -> AttemptToken | None:
        if not text.startswith(ATTEMPT_TOKEN_PREFIX):
            return None
        payload = self._verify("attempt", text.removeprefix(ATTEMPT_TOKEN_PREFIX), "")
        if payload is None:
            return None
        org, epoch, number = payload.decode().split(".")
        return AttemptToken(org, epoch, int(number))

    def _sign(self, purpose: str, payload: bytes, bound_to: str) -> str:
        key_id = self._secrets.signing_id
        mac = self._mac(self._secrets.signing[key_id], purpose, key_id, payload, bound_to)
        return f"{key_id}.{_text(payload)}.{_text(mac)}"

    def _verify(self, purpose: str, token: str, bound_to: str) -> bytes | None:
        try:
            key_id, payload_text, mac_text = token.split(".")
            payload, mac = _bytes(payload_text), _bytes(mac_text)
        except ValueError:
            return None
        key = self._secrets.signing.get(key_id)
        if key is None or not hmac.compare_digest(mac, self._mac(key, purpose, key_id, payload, bound_to)):
            return None
        # Base64 has several spellings of the same bytes; only the one we wrote counts.
        return payload if _text(payload) == payload_text and _text(mac) == mac_text else None

    @staticmethod
    def _mac(key: bytes, purpose: str, key_id: str, payload: bytes, bound_to: str) -> bytes:
        message = b"\0".join((purpose.encode(), key_id.encode(), payload, bound_to.encode()))
        return hmac.digest(key, message, "sha256")[:SIGNATURE_BYTES]


def link_expiry(now_ms: int, *, link_hours: float) -> int:
    """When a link made now shall end: the same answer for an hour, so that clients can resume by URL."""
    return (now_ms // LINK_STEP_MS + 1) * LINK_STEP_MS + int(link_hours * 3600 * 1000)


def _decoded(payload: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.MsgspecError:
        return None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
