"""Encoded samples on disk: made once for all runs of this machine that see the same data through the same processor.

Samples lie in files of some hundred pictures (``shards.py``), in the order of the data. Where one file ends and the
next begins is decided by the pictures' content, so pictures that are added or removed change the files around them and
no others. A file's name is a hash of everything that decides what is in it: its samples' content, the processor with
its settings, system prompt, family, and the versions of what did the work. Same name, same bytes.

    <data_dir>/cache/<organization>/<dataset>/<name>            whole: fsynced before it got this name
    <data_dir>/cache/<organization>/<dataset>/.<name>.building  being written by whoever has it locked

Several runs share it. Whoever writes a file holds it locked (flock), so two runs that begin at once write different
files and wait for each other's only in the end; the lock of a killed one is free, and its half is begun anew. Whoever
reads a file holds it locked as well, shared, and so it is never removed under anybody. What is used by nobody goes when
the bound (``RUNYARD_CACHE_MAX_GIB``) needs room, least recently used first.

Where the bound or the disk leaves no room, tokens alone are written, into the attempt's folder, and pictures are
decoded and processed again each time they are drawn: slower, the same to the last bit.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runyard.rundir import NO_ROOM, free_bytes, fsync_dir
from runyard.trainer.data.encode import Encoded, Encodes, Encodings, Layout, join
from runyard.trainer.data.image_resolution import TooLong
from runyard.trainer.data.images import BrokenPicture
from runyard.trainer.data.shards import BROKEN, REFUSED, SHRUNK, Array, Shard, ShardDamaged, ShardWriter, open_shard
from runyard.trainer.data.uploaded import Selection, UploadedSamples
from runyard.trainer.errors import InvalidData

ENCODING = 2  # to be raised when what is written changes, or the code that makes it
PICTURES_PER_FILE, MOST_PICTURES = 128, 512  # on average, and at most
MOST_BROKEN = 0.05  # a larger share of broken pictures ends the run
NAMED_BROKEN = 20  # pictures that are told one by one
TOLD_EVERY_S, LOOK_EVERY_S, WAIT_S = 1.0, 0.1, 0.1
FOLDER = "encoded"  # below the attempt's folder, for what finds no room in the cache
BUILDING = ".building"
SPARE_DESCRIPTORS = 256
IN_MEMORY_BYTES = 128 << 20  # of each part of the data
SAMPLE_BYTES = 2 << 10  # what a sample takes beside its pixels


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where encoded samples may lie: ``shared`` (None: nowhere), at most ``limit_bytes`` below ``root``, as long as
    ``spare_bytes`` of the disk stay free; and ``own``, the attempt's folder."""

    own: Path
    root: Path | None = None
    shared: Path | None = None
    limit_bytes: int = 0
    spare_bytes: int = 1 << 30


@dataclass(kw_only=True)
class Told:
    """What building says and asks meanwhile. ``look`` raises when all this is not wanted any more."""

    look: Callable[[], None] = lambda: None
    progress: Callable[[str], None] = lambda message: None
    warn: Callable[[str], None] = lambda message: None
    clock: Callable[[], float] = time.monotonic


@dataclass(kw_only=True)
class Cached:
    """Every sample that was asked for: ``numbers`` ascending, and for each its file and its place there.

    ``broken`` says why samples cannot be had, ``refused`` how long those are that do not fit into the model's context;
    ``shrunk`` are those with a smaller picture; ``built`` counts the files that were not there before.
    """

    samples: UploadedSamples
    encoder: Encodes
    numbers: Array
    shards: list[Shard]
    broken: dict[int, str]
    refused: dict[int, str]
    shrunk: Array
    built: int

    @property
    def broken_pictures(self) -> int:
        return self.samples.pictures_among(np.asarray(sorted(self.broken), np.int64))

    def part(self, selection: Selection, layout: Layout) -> "CachedSamples":
        return CachedSamples(self, selection, layout)

    def close(self) -> None:
        """Let others remove the files; what was mapped stays readable."""
        for shard in self.shards:
            shard.close()


class CachedSamples(Encodings):
    """The samples of one part of the data, gathered from mapped files."""

    def __init__(self, cached: Cached, selection: Selection, layout: Layout):
        super().__init__(layout)
        self._memory: dict[int, Encoded] = {}
        self._room_bytes = IN_MEMORY_BYTES
        self._cached, self._numbers = cached, selection.numbers
        sizes = [len(shard) for shard in cached.shards]
        at = np.searchsorted(cached.numbers, selection.numbers)
        self._shards = np.repeat(np.arange(len(sizes)), sizes)[at]
        self._rows = at - np.concatenate([[0], np.cumsum(sizes)])[self._shards]
        self.prompt_lengths = np.concatenate([shard.prompt_lengths for shard in cached.shards])[at]
        self.lengths = self.prompt_lengths + np.concatenate([shard.answer_lengths for shard in cached.shards])[at]
        shares = np.bincount(self._shards, minlength=len(sizes)) / sizes
        self.size_bytes = round(float(shares @ [shard.size_bytes for shard in cached.shards]))

    def _row(self, index: int) -> Encoded:
        return self._memory.get(index) or self._shard(index).row(int(self._rows[index]))

    def _pixels(self, indices: Sequence[int]) -> dict[str, Array]:
        found = [self._kept_images(index) for index in indices]
        return {name: join([images[name] for images in found]) for name in found[0]}

    def _kept_images(self, index: int) -> dict[str, Array]:
        """Pictures of a sample; those of small data stay in memory with its tokens, ready to be joined with others."""
        if index in self._memory:
            return self._memory[index].images
        images = self._images(index)
        size_bytes = SAMPLE_BYTES + sum(array.nbytes for array in images.values())
        if size_bytes <= self._room_bytes:
            self._memory[index] = replace(self._row(index), images=images)
            self._room_bytes -= size_bytes
        return images

    def _shard(self, index: int) -> Shard:
        return self._cached.shards[int(self._shards[index])]

    def _images(self, index: int) -> dict[str, Array]:
        images = self._shard(index).images(int(self._rows[index]))
        if images is None:
            sample = self._cached.samples.sample(int(self._numbers[index]))
            images = self._cached.encoder.encode(sample).images
        return images


def encode_all(
    parts: Sequence[Selection], encoder: Encodes, place: Place, told: Told, *, per_file: int = PICTURES_PER_FILE
) -> Cached:
    """Find or make the encodings of all samples of these parts.

    Raises:
        InvalidData: more than ``MOST_BROKEN`` of the pictures are broken.
        OSError: the disk or the machine's copy of the data fails.
    """
    samples = parts[0].whole
    numbers = np.unique(np.concatenate([part.numbers for part in parts]))
    settings = settings_key(encoder)
    pieces = [(name_of(samples, piece, settings), piece) for piece in cut(samples, numbers, per_file)]
    _allow_descriptors(2 * len(pieces) + SPARE_DESCRIPTORS)
    builder = _Builder(samples, encoder, place, told, numbers)
    shards = builder.all(pieces)
    states = np.concatenate([shard.states for shard in shards])
    begins = np.cumsum([0, *map(len, shards)])

    def missing(state: int) -> dict[int, str]:
        found = {}
        for at in np.flatnonzero(states == state):
            shard = int(np.searchsorted(begins, at, side="right")) - 1
            found[int(numbers[at])] = shards[shard].missing(int(at - begins[shard])) or ""
        return found

    broken = missing(BROKEN)
    cached = Cached(
        samples=samples,
        encoder=encoder,
        numbers=numbers,
        shards=shards,
        broken=broken,
        refused=missing(REFUSED),
        shrunk=numbers[states == SHRUNK],
        built=builder.built,
    )
    _tell_broken(samples, numbers, broken, told)
    return cached


def settings_key(encoder: Encodes) -> str:
    """A hash of everything but the samples that decides what is written."""
    import PIL
    import tokenizers
    import transformers

    versions = [np.__version__, PIL.__version__, tokenizers.__version__, transformers.__version__]
    document = {"encoding": ENCODING, "versions": versions, **encoder.settings}
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def cut(samples: UploadedSamples, numbers: Array, per_file: int = PICTURES_PER_FILE) -> Iterator[Array]:
    """The samples in pieces of about ``per_file`` pictures. A piece ends behind a picture whose hash says so."""
    begin = pictures = 0
    for at, number in enumerate(numbers):
        picture = samples.pictures[number]
        if at + 1 < len(numbers) and np.array_equal(samples.pictures[numbers[at + 1]], picture):
            continue
        pictures += 1
        is_end = int.from_bytes(picture[:4].tobytes(), "big") % per_file == 0
        if is_end or pictures >= per_file * (MOST_PICTURES // PICTURES_PER_FILE) or at + 1 == len(numbers):
            yield numbers[begin : at + 1]
            begin, pictures = at + 1, 0


def name_of(samples: UploadedSamples, piece: Array, settings: str) -> str:
    return hashlib.sha256(settings.encode() + samples.keys[piece].tobytes()).hexdigest()[:40]


class _Builder:
    """Opens the files that are there, writes those that are not, and shares that work with other runs."""

    def __init__(self, samples: UploadedSamples, encoder: Encodes, place: Place, told: Told, numbers: Array):
        self._samples, self._encoder, self._place, self._told = samples, encoder, place, told
        self._total, self._pictures = len(numbers), samples.pictures_among(numbers)
        self._done = self._encoded = 0
        self._began_s = self._told_s = self._looked_s = told.clock()
        self._bytes_per_sample = 0.0
        self._broken: set[bytes] = set()
        self.built = 0

    def all(self, pieces: list[tuple[str, Array]]) -> list[Shard]:
        """The files of all pieces, open, each locked against removal."""
        found: dict[int, Shard] = {}
        try:
            waiting = list(enumerate(pieces))
            while waiting:
                left, is_idle = [], True
                for at, (name, piece) in waiting:
                    self._look()
                    shard = self._open(name, piece) or self._build(name, piece)
                    if shard is None:
                        left.append((at, (name, piece)))
                    else:
                        found[at], is_idle = shard, False
                        self._done += len(piece)
                        self._tell()
                waiting = left
                if waiting and is_idle:
                    self._tell("Waiting for another run that encodes the same pictures")
                    time.sleep(WAIT_S)
        except BaseException:
            for shard in found.values():
                shard.close()
            raise
        return [found[at] for at in range(len(pieces))]

    def _open(self, name: str, piece: Array) -> Shard | None:
        """A whole file of that name, from the cache or of this attempt."""
        for folder in self._folders():
            shard = opened(folder / name, count=len(piece))
            if shard is not None:
                return shard
        return None

    def _folders(self) -> list[Path]:
        return [folder for folder in (self._place.shared, self._place.own / FOLDER) if folder is not None]

    def _build(self, name: str, piece: Array) -> Shard | None:
        """Write a file; None when another run is at it."""
        place = self._place
        if place.shared is not None and self._has_room(int(self._bytes_per_sample * len(piece))):
            with contextlib.suppress(_NoRoom):
                return self._write(place.shared, name, piece, with_images=True)
        while True:
            try:
                return self._write(place.own / FOLDER, name, piece, with_images=False)
            except _NoRoom as error:
                self._tell(f"Waiting for disk space: {error}")
                time.sleep(WAIT_S)
                self._told.look()

    def _write(self, folder: Path, name: str, piece: Array, *, with_images: bool) -> Shard | None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged, final = folder / f".{name}{BUILDING}", folder / name
        descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_kept = False
        try:
            if not _lock(descriptor, fcntl.LOCK_EX) or not _is_at(descriptor, staged):
                return None
            if final.exists():  # whoever was at it has finished between our two looks
                staged.unlink()
                return None
            try:
                size_bytes = self._fill(descriptor, piece, with_images=with_images)
                if with_images:
                    self._bytes_per_sample = size_bytes / len(piece)
                    if not self._has_room(0):
                        raise _NoRoom("the cache is full")
                os.replace(staged, final)
                fsync_dir(folder)
            except BaseException as error:
                staged.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise _NoRoom(error.strerror) from error
                raise
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            shard = Shard(descriptor)
            is_kept = True
            self.built += 1
            return shard
        finally:
            if not is_kept:
                os.close(descriptor)

    def _fill(self, descriptor: int, piece: Array, *, with_images: bool) -> int:
        with open(os.dup(descriptor), "r+b") as file:
            writer = ShardWriter(file, with_images=with_images)
            for at, number in enumerate(piece.tolist()):
                try:
                    item = self._encoder.encode(self._samples.sample(number))
                except BrokenPicture as broken:
                    writer.add_missing(str(broken) or type(broken).__name__, BROKEN)
                    self._count_broken(number, str(broken))
                except TooLong as refused:
                    writer.add_missing(str(refused), REFUSED)
                else:
                    writer.add(item)
                self._encoded += 1
                self._look(at + 1)
            return writer.finish()

    def _count_broken(self, number: int, why: str) -> None:
        """End early when there are too many, rather than after hours."""
        self._broken.add(self._samples.pictures[number].tobytes())
        if len(self._broken) > MOST_BROKEN * self._pictures and len(self._broken) > NAMED_BROKEN:
            raise InvalidData(
                f"more than {MOST_BROKEN:.0%} of the pictures of dataset {self._samples.name!r} cannot be decoded, "
                f"{self._samples.filename(number)!r} among them ({why}); save them again from their source"
            )

    def _has_room(self, needed_bytes: int) -> bool:
        place = self._place
        if place.root is None:
            return False
        place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not make_room(place.root, needed_bytes, place.limit_bytes):
            return False
        return free_bytes(place.root) >= needed_bytes + place.spare_bytes

    def _look(self, in_piece: int = 0) -> None:
        now_s = self._told.clock()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self._told.look()
            self._tell(in_piece=in_piece)

    def _tell(self, message: str | None = None, in_piece: int = 0) -> None:
        now_s = self._told.clock()
        if now_s - self._told_s < TOLD_EVERY_S:
            return
        self._told_s = now_s
        self._told.progress(message or self._progress(self._done + in_piece, now_s - self._began_s))

    def _progress(self, done: int, seconds: float) -> str:
        words = f"Encoding pictures: {done:,} of {self._total:,} samples"
        if not self._encoded or seconds <= 0:
            return words
        # Files that were there took no time; the rest goes at the rate of those that did.
        rate = self._encoded / seconds
        return f"{words}, {rate:,.0f}/s, {in_words((self._total - done) / rate)} left"


class _NoRoom(Exception):
    """Neither bound nor disk takes this file."""


def in_words(seconds: float) -> str:
    """A time left, as roughly as it is known."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def opened(path: Path, *, count: int) -> Shard | None:
    """A whole file, locked against removal and noted as used; None when there is none. A damaged one is removed."""
    descriptor = open_shard(path)
    if descriptor is None:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        if not _is_at(descriptor, path):  # removed while we waited
            raise ShardDamaged("it is gone")
        shard = Shard(descriptor)
        if len(shard) != count:
            raise ShardDamaged(f"it holds {len(shard)} samples and not {count}")
        os.utime(descriptor)
        return shard
    except ShardDamaged:
        with contextlib.suppress(FileNotFoundError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)
        return None


def make_room(root: Path, needed_bytes: int, limit_bytes: int) -> bool:
    """Remove what nobody uses, least recently used first, until so much more fits; False when it still does not."""
    files = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                files.append((found.st_mtime_ns, found.st_size, path))
    left = sum(size for _, size, _ in files) + needed_bytes
    for _, size, path in sorted(files):
        if left <= limit_bytes:
            break
        if _removed(path):
            left -= size
    return left <= limit_bytes


def _removed(path: Path) -> bool:
    """Remove a file unless somebody has it locked."""
    descriptor = open_shard(path)
    if descriptor is None:
        return True
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            return False
        if _is_at(descriptor, path):
            path.unlink()
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _allow_descriptors(needed: int) -> None:
    """Two a file, as the map has its own; the soft limit of 1,024 is there for programs that use ``select``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _tell_broken(samples: UploadedSamples, numbers: Array, broken: dict[int, str], told: Told) -> None:
    """Warn of each broken picture by name; refuse the data when there are too many."""
    if not broken:
        return
    by_name = {samples.filename(number): why for number, why in broken.items()}
    total = samples.pictures_among(numbers)
    first = "; ".join(f"{name!r} ({why})" for name, why in list(by_name.items())[:3])
    if len(by_name) > MOST_BROKEN * total:
        raise InvalidData(
            f"{len(by_name)} of {total} pictures of dataset {samples.name!r} cannot be decoded, more than "
            f"{MOST_BROKEN:.0%}: {first}; save them again from their source, or remove them"
        )
    for name, why in list(by_name.items())[:NAMED_BROKEN]:
        told.warn(f"picture {name!r} cannot be decoded and is left out: {why}")
    told.warn(f"{len(by_name)} of {total} pictures cannot be decoded and are left out")
