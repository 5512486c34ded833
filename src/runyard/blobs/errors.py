"""Errors of the blob store.

BlobError
  InvalidBlobName    a name that is not a SHA-256 in lower-case hex
  BlobMissing        nothing is stored under that hash
  BlobMismatch       the bytes sent are not the bytes announced; nothing was stored
  BlobDamaged        the stored bytes have changed on disk; they are not served
  BlobHeld           a backup or a restore needs it, so it cannot be removed now
"""


class BlobError(Exception):
    """Base of all errors of the blob store."""


class InvalidBlobName(BlobError, ValueError):
    """The name is not a hash, so it never becomes a path."""

    def __init__(self, given: object) -> None:
        self.given = given
        super().__init__(
            f"{str(given)[:80]!r} is not the name of a blob; expected 64 lower-case hexadecimal "
            "digits"
        )


class BlobMissing(BlobError, LookupError):
    """Nothing is stored under this hash."""

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256
        super().__init__(f"no blob {sha256} is stored; try: upload it first")


class BlobMismatch(BlobError):
    """The bytes sent differ from what was announced. Nothing was stored; send the file again."""

    def __init__(
        self, *, sha256: str, size_bytes: int, got_sha256: str | None, got_size_bytes: int
    ) -> None:
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self.got_sha256 = got_sha256
        self.got_size_bytes = got_size_bytes
        got = (
            f"{got_size_bytes} bytes with hash {got_sha256}"
            if got_sha256
            else f"at least {got_size_bytes} bytes"
        )
        super().__init__(
            f"announced {size_bytes} bytes with hash {sha256}, got {got}; try: send the file again"
        )


class BlobDamaged(BlobError):
    """The stored bytes changed on disk. Uploading the same content again repairs the blob."""

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256
        super().__init__(f"blob {sha256} is damaged on disk; try: upload its content again")


class BlobHeld(BlobError):
    """A backup or a restore needs the blob; remove it after that."""

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256
        super().__init__(
            f"blob {sha256} is held by a backup or a restore; try: remove it after that"
        )
