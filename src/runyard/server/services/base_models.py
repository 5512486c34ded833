"""Base models of the server's machine, which other machines fetch file by file.

Files are identified by their SHA-256. Hashing a large model takes minutes, so it happens once, in a
thread of its own; a request that comes too early is answered 503 and repeated. The hashes are
remembered in a file, each with size and time of change of what was hashed. A file that has changed
since is hashed again, and never sent under its old hash.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from runyard.base_models import ModelMissing, UnreadableModel, list_model_files, locate_model
from runyard.protocol import CheckpointFile
from runyard.rundir import read_json, write_json
from runyard.server.services.errors import Refusal
from runyard.settings import Settings

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20
ANSWER_WITHIN_S = 5.0
LOG_EVERY_BYTES = 4 << 30

Signature = tuple[int, int]  # size in bytes, time of change in nanoseconds


@dataclass
class BaseModels:
    """The hashes of base models. Belongs to the event loop."""

    _hashes: dict[str, tuple[Signature, str]] | None = None
    _running: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    _guard: threading.RLock = field(default_factory=threading.RLock)

    async def list_files(self, settings: Settings, weights: str) -> list[CheckpointFile]:
        """Return the files of a base model with their hashes.

        Raises:
            ModelMissing: it is not in the model folders.
            Refusal: InvalidFlow (a file may not be fetched); StorageUnavailable (still hashing, or
                a file cannot be read).
        """
        try:
            paths = await asyncio.to_thread(_list_paths, settings, weights)
            known = await asyncio.to_thread(self._match_hashes, settings, paths)
            if len(known) < len(paths):
                await self._wait_until_hashed(settings, weights, paths)
                known = await asyncio.to_thread(self._match_hashes, settings, paths)
        except OSError as error:
            raise _build_unavailable(weights, f"cannot be read: {error}") from error
        if len(known) < len(paths):
            raise _build_unavailable(weights, "is changing on the disk")
        return [
            CheckpointFile(path=where, size_bytes=size_bytes, sha256=sha256)
            for where, ((size_bytes, _), sha256) in known.items()
        ]

    async def open_file(
        self, settings: Settings, weights: str, sha256: str
    ) -> tuple[BinaryIO, int] | None:
        """Return an open file of a base model and its length; None if no file has this hash.

        Raises:
            Refusal: BlobMissing (the file has changed since it was hashed).
        """
        try:
            paths = await asyncio.to_thread(_list_paths, settings, weights)
        except ModelMissing:
            return None
        return await asyncio.to_thread(self._open, settings, weights, paths, sha256)

    def _open(
        self, settings: Settings, weights: str, paths: Mapping[str, Path], sha256: str
    ) -> tuple[BinaryIO, int] | None:
        hashes = self._load(settings)
        where = next(
            (
                where
                for where, path in paths.items()
                if hashes.get(str(path), ((), ""))[1] == sha256
            ),
            None,
        )
        if where is None:
            return None
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(paths[where], "rb"))
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != hashes[str(paths[where])][0]:
                raise Refusal(
                    "BlobMissing",
                    f"{where} of model {weights!r} has changed on the server's machine while it "
                    "was fetched; try: start the run again once the model is complete",
                )
            stack.pop_all()
            return file, found.st_size

    def _load(self, settings: Settings) -> dict[str, tuple[Signature, str]]:
        with self._guard:
            if self._hashes is None:
                document = read_json(settings.model_hashes_file) or {}
                self._hashes = {
                    path: parsed
                    for path, entry in document.items()
                    if (parsed := _parse_entry(entry)) is not None
                }
            return dict(self._hashes)

    def _match_hashes(
        self, settings: Settings, paths: Mapping[str, Path]
    ) -> dict[str, tuple[Signature, str]]:
        """Return the files whose hash is known and which have not changed since, by path."""
        hashes = self._load(settings)
        return {
            where: hashes[str(path)]
            for where, path in paths.items()
            if hashes.get(str(path), (None,))[0] == _read_signature(path)
        }

    async def _wait_until_hashed(
        self, settings: Settings, weights: str, paths: Mapping[str, Path]
    ) -> None:
        running = self._running.get(weights)
        if running is None:
            loop = asyncio.get_running_loop()
            running = self._running[weights] = loop.create_future()
            running.add_done_callback(lambda _: self._running.pop(weights, None))

            def hash_and_notify(future: asyncio.Future[None]) -> None:
                error: Exception | None = None
                try:
                    self._hash_files(settings, weights, paths)
                except Exception as caught:
                    error = caught
                with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                    loop.call_soon_threadsafe(_set_outcome, future, error)

            # A daemon: a server that ends does not wait until a large model is read.
            threading.Thread(
                target=hash_and_notify, args=(running,), name="hash-model", daemon=True
            ).start()
        done, _ = await asyncio.wait({running}, timeout=ANSWER_WITHIN_S)
        if not done:
            raise _build_unavailable(weights, "is being hashed")
        await running

    def _hash_files(self, settings: Settings, weights: str, paths: Mapping[str, Path]) -> None:
        known = self._match_hashes(settings, paths)
        new = {str(path): path for where, path in paths.items() if where not in known}
        total_bytes, done_bytes, logged_bytes = sum(p.stat().st_size for p in new.values()), 0, 0
        log.info("hashing model %s: %d files, %d MiB", weights, len(new), total_bytes >> 20)
        for name, path in new.items():
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                found = os.fstat(file.fileno())
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    done_bytes += len(chunk)
                    if done_bytes - logged_bytes >= LOG_EVERY_BYTES:
                        logged_bytes = done_bytes
                        log.info(
                            "hashed %d of %d MiB of model %s",
                            *(done_bytes >> 20, total_bytes >> 20, weights),
                        )
            self._remember(settings, name, (found.st_size, found.st_mtime_ns), digest.hexdigest())
        log.info("hashed model %s", weights)

    def _remember(self, settings: Settings, path: str, signature: Signature, sha256: str) -> None:
        """Remember the hash of a file, and forget those of files that are gone."""
        with self._guard:
            hashes = self._load(settings) | {path: (signature, sha256)}
            self._hashes = {path: entry for path, entry in hashes.items() if Path(path).exists()}
            write_json(
                settings.model_hashes_file,
                {
                    path: {"sizeBytes": size_bytes, "mtimeNs": mtime_ns, "sha256": sha256}
                    for path, ((size_bytes, mtime_ns), sha256) in self._hashes.items()
                },
                mode=0o600,
            )


def _list_paths(settings: Settings, weights: str) -> dict[str, Path]:
    """Return the files of a base model by their paths on other machines.

    Raises:
        ModelMissing: it is not in the model folders.
        Refusal: InvalidFlow (a file may not be fetched).
    """
    try:
        return list_model_files(locate_model(weights, settings.models), settings.models)
    except UnreadableModel as error:
        message = f"model {weights!r} cannot be fetched: {error}; try: add it again"
        raise Refusal("InvalidFlow", message) from error


def _read_signature(path: Path) -> Signature:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _parse_entry(entry: Any) -> tuple[Signature, str] | None:
    try:
        return (int(entry["sizeBytes"]), int(entry["mtimeNs"])), str(entry["sha256"])
    except (KeyError, TypeError, ValueError):
        return None


def _set_outcome(future: asyncio.Future[None], error: Exception | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _build_unavailable(weights: str, what: str) -> Refusal:
    return Refusal("StorageUnavailable", f"model {weights!r} {what}; try: again in a moment")
