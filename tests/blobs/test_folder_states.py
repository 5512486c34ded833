"""After any uploads, deletions, crashes and bit flips, served bytes are the stored ones."""

import hashlib
import io
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from runyard.blobs import BlobDamaged, BlobMismatch, FolderBlobs
from runyard.blobs.folder import BLOCK_BYTES

CONTENTS = [
    b"",
    b"a",
    b"apple",
    bytes(BLOCK_BYTES),
    bytes(BLOCK_BYTES) + b"tail",
    b"xyz" * BLOCK_BYTES,
]


class Lost(Exception):
    """The process or the connection is gone."""


class BlobStates(RuleBasedStateMachine):
    """A folder and a dictionary as its model; ``damaged`` are the hashes whose file was damaged."""

    stored = Bundle("stored")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.blobs = FolderBlobs(Path(self.folder.name) / "blobs")
        self.contents: dict[str, bytes] = {}
        self.damaged: set[str] = set()

    @rule(target=stored, content=st.sampled_from(CONTENTS))
    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs.put(io.BytesIO(content), sha256=sha256, size_bytes=len(content))
        self.contents[sha256] = content
        self.damaged.discard(sha256)
        return sha256

    @rule(content=st.sampled_from(CONTENTS), sent=st.sampled_from(CONTENTS))
    def put_something_else(self, content: bytes, sent: bytes) -> None:
        if content != sent:
            with pytest.raises(BlobMismatch):
                self.blobs.put(
                    io.BytesIO(sent),
                    sha256=hashlib.sha256(content).hexdigest(),
                    size_bytes=len(content),
                )

    @rule(content=st.sampled_from(CONTENTS), arrived=st.integers(0, 10))
    def upload_is_cut(self, content: bytes, arrived: int) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        with suppress(Lost), self.blobs.receive(sha256=sha256, size_bytes=len(content)) as upload:
            upload.write(content[:arrived])
            raise Lost

    @rule(sha256=consumes(stored))
    def delete(self, sha256: str) -> None:
        self.blobs.delete(sha256)
        self.contents.pop(sha256, None)
        self.damaged.discard(sha256)

    @rule(sha256=stored, where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def flip(self, sha256: str, where: float, bit: int) -> None:
        content = self.contents.get(sha256)
        if not content or sha256 in self.damaged:  # a second flip could undo the first
            return
        spoilt = bytearray(content)
        spoilt[int(where * len(content))] ^= 1 << bit
        (self.blobs.root / sha256[:2] / sha256).write_bytes(spoilt)
        self.damaged.add(sha256)

    @rule(sha256=stored)
    def checksums_are_lost(self, sha256: str) -> None:
        (self.blobs.root / sha256[:2] / f"{sha256}.crc").unlink(missing_ok=True)

    @rule()
    def restart(self) -> None:
        self.blobs = FolderBlobs(self.blobs.root)
        self.blobs.clear_incoming()

    @invariant()
    def only_what_was_stored_is_served(self) -> None:
        if not hasattr(self, "blobs"):
            return
        assert set(self.blobs.hashes()) == set(self.contents)
        for sha256, content in self.contents.items():
            if sha256 in self.damaged:
                with pytest.raises(BlobDamaged), self.blobs.open(sha256) as file:
                    file.read()
            else:
                with self.blobs.open(sha256) as file:
                    assert file.read() == content

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestBlobStates = BlobStates.TestCase
TestBlobStates.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)


@pytest.mark.slow
class TestManyBlobStates(BlobStates.TestCase):  # type: ignore[misc,valid-type]
    """The same for more histories."""


TestManyBlobStates.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
