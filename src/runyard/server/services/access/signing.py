"""Signed values that come back unchanged: page tokens, download links, attempt tokens.

Each purpose has its own context in the signature, so that one can never pass for another. Old
signing keys still verify, which lets an operator rotate them without breaking links in use.
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
    """The end of a page: the last item's time and id."""

    time_ms: int
    id: str


class Link(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The target of a download link: one archive, identified by its hash, until ``expires_at``."""

    org: str
    run_id: str
    output_id: str
    sha256: str
    expires_at: int


class FileLink(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The target of a download link: the bytes of an image or an export.

    It is valid while the row that names them is unchanged. ``kind`` is ``asset`` or ``export``,
    ``id`` its id; ``content`` is the SHA-256 of what it held when the link was made.
    """

    org: str
    dataset_id: str
    kind: str
    id: str
    content: str
    expires_at: int


class UploadLink(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The target of an upload address: packs (number 0), one announced file, or a part of it."""

    org: str
    dataset_id: str
    import_id: str
    number: int
    part: int
    expires_at: int


@dataclass(frozen=True)
class AttemptToken:
    """The attempt that a supervisor speaks for. ``(store_id, number)`` is never issued twice."""

    org: str
    store_id: str
    number: int


class Signer:
    """Signs and verifies with the deployment's signing keys."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def sign_page_token(self, position: Position, *, org: str, question: str) -> str:
        """Return an opaque token, valid only for the same question of the same organization."""
        return self._sign("page", msgspec.json.encode(position), f"{org}\n{question}")

    def verify_page_token(self, token: str, *, org: str, question: str) -> Position | None:
        """Return the position in a token; None when it is foreign, or made for another question."""
        payload = self._verify("page", token, f"{org}\n{question}")
        return None if payload is None else _decode(payload, Position)

    def sign_link(self, link: Link) -> str:
        """Return the token of a download link."""
        return self._sign("download:GET,HEAD", msgspec.json.encode(link), "")

    def verify_link(self, token: str) -> Link | None:
        """Return the target of a link, expired or not; None when it is foreign."""
        payload = self._verify("download:GET,HEAD", token, "")
        return None if payload is None else _decode(payload, Link)

    def sign_file_link(self, link: FileLink) -> str:
        """Return the token of a link to a file."""
        return self._sign("file:GET,HEAD", msgspec.json.encode(link), "")

    def verify_file_link(self, token: str) -> FileLink | None:
        """Return the target of a link to a file, expired or not; None when it is foreign."""
        payload = self._verify("file:GET,HEAD", token, "")
        return None if payload is None else _decode(payload, FileLink)

    def sign_upload(self, link: UploadLink) -> str:
        """Return the token of an upload address."""
        return self._sign("upload:PUT", msgspec.json.encode(link), "")

    def verify_upload(self, token: str) -> UploadLink | None:
        """Return the target of an upload address, expired or not; None when it is foreign."""
        payload = self._verify("upload:PUT", token, "")
        return None if payload is None else _decode(payload, UploadLink)

    def sign_attempt_token(self, token: AttemptToken) -> str:
        """Return an attempt's token."""
        payload = f"{token.org}.{token.store_id}.{token.number}"
        return ATTEMPT_TOKEN_PREFIX + self._sign("attempt", payload.encode(), "")

    def verify_attempt_token(self, text: str) -> AttemptToken | None:
        """Return the attempt of a token; None when the token is foreign."""
        if not text.startswith(ATTEMPT_TOKEN_PREFIX):
            return None
        payload = self._verify("attempt", text.removeprefix(ATTEMPT_TOKEN_PREFIX), "")
        if payload is None:
            return None
        org, store_id, number = payload.decode().split(".")
        return AttemptToken(org, store_id, int(number))

    def _sign(self, purpose: str, payload: bytes, bound_to: str) -> str:
        key_id = self._secrets.signing_id
        mac = self._mac(self._secrets.signing[key_id], purpose, key_id, payload, bound_to)
        return f"{key_id}.{_encode_base64(payload)}.{_encode_base64(mac)}"

    def _verify(self, purpose: str, token: str, bound_to: str) -> bytes | None:
        try:
            key_id, payload_text, mac_text = token.split(".")
            payload, mac = _decode_base64(payload_text), _decode_base64(mac_text)
        except ValueError:
            return None
        key = self._secrets.signing.get(key_id)
        if key is None or not hmac.compare_digest(
            mac, self._mac(key, purpose, key_id, payload, bound_to)
        ):
            return None
        # Base64 has several spellings of the same bytes; only the one that we wrote is valid.
        return (
            payload
            if _encode_base64(payload) == payload_text and _encode_base64(mac) == mac_text
            else None
        )

    @staticmethod
    def _mac(key: bytes, purpose: str, key_id: str, payload: bytes, bound_to: str) -> bytes:
        message = b"\0".join((purpose.encode(), key_id.encode(), payload, bound_to.encode()))
        return hmac.digest(key, message, "sha256")[:SIGNATURE_BYTES]


def link_expiry(now_ms: int, *, link_hours: float) -> int:
    """Return when a link made now ends.

    It is the same time for an hour, so that clients can resume by URL.
    """
    return (now_ms // LINK_STEP_MS + 1) * LINK_STEP_MS + int(link_hours * 3600 * 1000)


def _decode(payload: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.MsgspecError:
        return None


def _encode_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode_base64(text: str) -> bytes:
    return base64.b64decode(
        text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True
    )
