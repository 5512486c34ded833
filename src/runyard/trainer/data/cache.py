"""Encoded samples on disk: encoded once for all runs of this machine with the same settings.

Samples are stored in shards of about a hundred images (``shards.py``), in the order of the data.
Shard boundaries follow from the images' content, so added or removed images change the shards
around them and no others. A shard's name is a hash of everything that determines its content: its
samples, the processor with its settings, system prompt, family, and the versions of the libraries.
Same name, same bytes.

    <data_dir>/cache/<organization>/<dataset>/
        <name>               complete: fsynced before it received this name
        .<name>.building     being written by the process that holds its lock

Samples are encoded by worker processes (``workers.py``), and written in order by this one, so a
shard has the same bytes for any number of workers.

Several runs share the cache. The writer of a shard holds an exclusive flock, so two runs that start
together write different shards and wait for each other only at the end. The lock of a killed writer
is free, and its partial file is started again. A reader holds a shared flock, so a shard in use is
never removed. Unused shards are evicted, least recently used first, when the limit
(``RUNYARD_CACHE_MAX_GIB``) is reached.

Where the limit or the disk leaves no space, only tokens are written, into the attempt's folder, and
images are decoded and processed each time they are used: slower, with bit-identical results.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from runyard.datasets.pixels import BrokenImage
from runyard.rundir import NO_ROOM, free_bytes, fsync_dir
from runyard.trainer.data.encode import (
    EncodedSample,
    Encodings,
    Layout,
    SampleEncoder,
    join_images,
    pack_images,
)
from runyard.trainer.data.image_resolution import TooLong
from runyard.trainer.data.pixels import PackedArray, join_packed
from runyard.trainer.data.shards import (
    BROKEN,
    REFUSED,
    SHRUNK,
    Array,
    Shard,
    ShardDamaged,
    ShardWriter,
    open_shard_file,
)
from runyard.trainer.data.uploaded import SampleSelection, SampleStore
from runyard.trainer.data.workers import SampleSource
from runyard.trainer.errors import InvalidData

ENCODING = 4  # to be raised when the stored format changes, or the code that produces it
IMAGES_PER_SHARD, MAX_IMAGES_PER_SHARD = 128, 512  # on average, and at most
MAX_BROKEN_SHARE = 0.05  # a larger share of broken images ends the run
MAX_NAMED_BROKEN = 20  # broken images that are reported one by one
PROGRESS_EVERY_S, CHECK_EVERY_S, WAIT_S = 1.0, 0.1, 0.1
FOLDER = "encoded"  # below the attempt's folder, for shards that find no space in the cache
BUILDING = ".building"
SPARE_DESCRIPTORS = 256
IN_MEMORY_BYTES = 128 << 20  # per part of the data
SAMPLE_BYTES = 2 << 10  # of a sample in memory, besides its pixels


@dataclass(frozen=True, kw_only=True)
class CacheDir:
    """Where encoded samples are stored.

    ``shared`` is the folder for this dataset (None: no shared cache). All files below ``root`` take
    at most ``limit_bytes``, as long as ``spare_bytes`` of the disk stay free. ``attempt_folder``
    takes what has no space there.
    """

    attempt_folder: Path
    root: Path | None = None
    shared: Path | None = None
    limit_bytes: int = 0
    spare_bytes: int = 1 << 30


@dataclass(kw_only=True)
class Hooks:
    """Callbacks of long operations.

    ``check_cancelled`` raises when the work was canceled. ``on_activity`` names what follows, which
    is reported if it takes a while; ``on_progress`` reports at once.
    """

    check_cancelled: Callable[[], None] = lambda: None
    on_activity: Callable[[str], None] = lambda message: None
    on_progress: Callable[[str], None] = lambda message: None
    on_warning: Callable[[str], None] = lambda message: None
    clock: Callable[[], float] = time.monotonic


@dataclass(kw_only=True)
class EncodedShards:
    """The shards of all requested samples; ``numbers`` are those samples in ascending order.

    ``broken`` says why a sample's image cannot be decoded, ``refused`` how long a sample is that
    exceeds the model's context. ``shrunk`` are the samples with a smaller image. ``built`` counts
    the shards that were written now.
    """

    samples: SampleStore
    encoder: SampleEncoder
    numbers: Array
    shards: list[Shard]
    broken: dict[int, str]
    refused: dict[int, str]
    shrunk: Array
    built: int

    @property
    def broken_image_count(self) -> int:
        return self.samples.count_images(np.asarray(sorted(self.broken), np.int64))

    def select(self, selection: SampleSelection, layout: Layout) -> "CachedEncodings":
        return CachedEncodings(self, selection, layout)

    def close(self) -> None:
        """Allow other processes to evict the shards; mapped data stays readable."""
        for shard in self.shards:
            shard.close()


class CachedEncodings(Encodings):
    """The samples of one part of the data, read from mapped shards.

    ``read_ahead`` may return a sample whose image is not stored, encoded elsewhere.
    """

    read_ahead: Callable[[int], EncodedSample | None] | None = None

    def __init__(self, encoded: EncodedShards, selection: SampleSelection, layout: Layout):
        super().__init__(layout)
        self._memory: dict[int, EncodedSample] = {}
        self._free_memory_bytes = IN_MEMORY_BYTES
        self._encoded, self._numbers = encoded, selection.numbers
        sizes = [len(shard) for shard in encoded.shards]
        at = np.searchsorted(encoded.numbers, selection.numbers)
        self._shards = np.repeat(np.arange(len(sizes)), sizes)[at]
        self._rows = at - np.concatenate([[0], np.cumsum(sizes)])[self._shards]
        self.prompt_lengths = np.concatenate([shard.prompt_lengths for shard in encoded.shards])[at]
        self.lengths = (
            self.prompt_lengths
            + np.concatenate([shard.answer_lengths for shard in encoded.shards])[at]
        )
        shares = np.bincount(self._shards, minlength=len(sizes)) / sizes
        self.size_bytes = round(float(shares @ [shard.size_bytes for shard in encoded.shards]))

    @property
    def cache_growth_bytes(self) -> int:
        return self._free_memory_bytes

    def read_row(self, index: int) -> EncodedSample:
        return self._memory.get(index) or self._get_shard(index).read_row(int(self._rows[index]))

    def read_images(self, indices: Sequence[int]) -> dict[str, Array]:
        tables = self._encoded.encoder.codec.tables
        found = [self._get_sample_images(index) for index in indices]
        return join_images(found, partial(join_packed, tables=tables))

    def _get_sample_images(self, index: int) -> dict[str, PackedArray]:
        """Return the image tensors of a sample, packed.

        Those of small datasets stay in memory with their tokens.
        """
        if index in self._memory:
            return self._memory[index].images
        images = self._read_images(index)
        size_bytes = SAMPLE_BYTES + sum(array.size_bytes for array in images.values())
        if size_bytes <= self._free_memory_bytes:
            self._memory[index] = replace(self.read_row(index), images=images)
            self._free_memory_bytes -= size_bytes
        return images

    def _get_shard(self, index: int) -> Shard:
        return self._encoded.shards[int(self._shards[index])]

    def _read_images(self, index: int) -> dict[str, PackedArray]:
        images = self._get_shard(index).read_images(int(self._rows[index]))
        if images is None:
            found = self.read_ahead(index) if self.read_ahead is not None else None
            images = (found or self.encode(index)).images
        return images

    @property
    def has_all_images(self) -> bool:
        return all(shard.has_images for shard in self._encoded.shards)

    @property
    def descriptors(self) -> list[int]:
        """The open files that ``encode`` reads."""
        return self._encoded.samples.descriptors

    def encode(self, index: int) -> EncodedSample:
        """Return a sample with its image, which is decoded and processed now."""
        encoder = self._encoded.encoder
        sample = self._encoded.samples.sample(int(self._numbers[index]))
        return pack_images(encoder.encode(sample), encoder.codec)


def encode_all(
    parts: Sequence[SampleSelection],
    encoder: SampleEncoder,
    cache_dir: CacheDir,
    hooks: Hooks,
    *,
    per_shard: int = IMAGES_PER_SHARD,
    processes: int = 1,
) -> EncodedShards:
    """Return the encodings of all samples of these parts, from existing shards or newly written
    ones. Samples are encoded by up to ``processes`` worker processes.

    Raises:
        InvalidData: more than ``MAX_BROKEN_SHARE`` of the images are broken.
        OSError: the disk or the machine's copy of the data fails.
    """
    samples = parts[0].whole
    numbers = np.unique(np.concatenate([part.numbers for part in parts]))
    settings = hash_settings(encoder)
    pieces = [
        (make_shard_name(samples, piece, settings), piece)
        for piece in split_by_content(samples, numbers, per_shard)
    ]
    _raise_descriptor_limit(2 * len(pieces) + SPARE_DESCRIPTORS)
    builder = _ShardBuilder(samples, encoder, cache_dir, hooks, numbers)
    shards = builder.build_all(pieces, processes)
    states = np.concatenate([shard.states for shard in shards])
    begins = np.cumsum([0, *map(len, shards)])

    def find_missing(state: int) -> dict[int, str]:
        found = {}
        for at in np.flatnonzero(states == state):
            shard = int(np.searchsorted(begins, at, side="right")) - 1
            found[int(numbers[at])] = (
                shards[shard].read_missing_reason(int(at - begins[shard])) or ""
            )
        return found

    broken = find_missing(BROKEN)
    encoded = EncodedShards(
        samples=samples,
        encoder=encoder,
        numbers=numbers,
        shards=shards,
        broken=broken,
        refused=find_missing(REFUSED),
        shrunk=numbers[states == SHRUNK],
        built=builder.built,
    )
    _report_broken(samples, numbers, broken, hooks)
    return encoded


def has_all_shards(selection: SampleSelection, encoder: SampleEncoder, cache_dir: CacheDir) -> bool:
    """Return whether the shared cache has all samples, so that nothing would be encoded."""
    if cache_dir.shared is None:
        return False
    settings, shared = hash_settings(encoder), cache_dir.shared
    pieces = split_by_content(selection.whole, np.unique(selection.numbers))
    return all(
        (shared / make_shard_name(selection.whole, piece, settings)).exists() for piece in pieces
    )


def hash_settings(encoder: SampleEncoder) -> str:
    """Return a hash of everything except the samples that determines the content of shards."""
    import PIL
    import tokenizers
    import transformers

    versions = [np.__version__, PIL.__version__, tokenizers.__version__, transformers.__version__]
    document = {"encoding": ENCODING, "versions": versions, **encoder.settings}
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def split_by_content(
    samples: SampleStore, numbers: Array, per_shard: int = IMAGES_PER_SHARD
) -> Iterator[Array]:
    """Yield the samples in pieces of about ``per_shard`` images (content-defined chunking).

    A piece ends after an image whose hash is divisible by ``per_shard``, so an insertion moves no
    later boundary.
    """
    begin = images = 0
    for at, number in enumerate(numbers):
        image_hash = samples.image_hashes[number]
        if at + 1 < len(numbers) and np.array_equal(
            samples.image_hashes[numbers[at + 1]], image_hash
        ):
            continue
        images += 1
        is_end = int.from_bytes(image_hash[:4].tobytes(), "big") % per_shard == 0
        if (
            is_end
            or images >= per_shard * (MAX_IMAGES_PER_SHARD // IMAGES_PER_SHARD)
            or at + 1 == len(numbers)
        ):
            yield numbers[begin : at + 1]
            begin, images = at + 1, 0


def make_shard_name(samples: SampleStore, piece: Array, settings: str) -> str:
    return hashlib.sha256(settings.encode() + samples.keys[piece].tobytes()).hexdigest()[:40]


class _ShardBuilder:
    """Opens existing shards, writes missing ones, and shares that work with other runs."""

    def __init__(
        self,
        samples: SampleStore,
        encoder: SampleEncoder,
        cache_dir: CacheDir,
        hooks: Hooks,
        numbers: Array,
    ):
        self._samples, self._encoder, self._cache_dir, self._hooks = (
            samples,
            encoder,
            cache_dir,
            hooks,
        )
        self._total, self._image_count = len(numbers), samples.count_images(numbers)
        self._done = self._encoded = self._in_piece = 0
        self._started_s = self._reported_s = self._checked_s = hooks.clock()
        self._bytes_per_sample = 0.0
        self._broken: set[bytes] = set()
        self.built = 0

    def build_all(self, pieces: list[tuple[str, Array]], processes: int) -> list[Shard]:
        """Return the shards of all pieces, open and each locked against eviction."""
        found: dict[int, Shard] = {}
        missing = {name: piece for name, piece in pieces if not self._exists(name)}
        self._missing = deque(missing.items())
        samples = self._samples
        self._source = SampleSource(
            lambda number: pack_images(
                self._encoder.encode(samples.sample(number)), self._encoder.codec
            ),
            total=sum(map(len, missing.values())),
            processes=processes,
            near=samples.have_same_image,
            descriptors=lambda: samples.descriptors,
            check=self._check_cancelled,
        )
        try:
            waiting = list(enumerate(pieces))
            while waiting:
                left, is_idle = [], True
                for at, (name, piece) in waiting:
                    self._check_cancelled()
                    shard = self._open(name, piece) or self._build(name, piece)
                    self._in_piece = 0
                    if shard is None:
                        left.append((at, (name, piece)))
                    else:
                        found[at], is_idle = shard, False
                        self._done += len(piece)
                        self._report()
                waiting = left
                if waiting and is_idle:
                    self._report("Waiting for another run that encodes the same images")
                    time.sleep(WAIT_S)
        except BaseException:
            for shard in found.values():
                shard.close()
            raise
        finally:
            self._source.close()
        return [found[at] for at in range(len(pieces))]

    def _open(self, name: str, piece: Array) -> Shard | None:
        """Return the complete shard of that name, from the cache or from this attempt.

        None if there is none.
        """
        for folder in self._list_folders():
            shard = open_cached_shard(folder / name, count=len(piece))
            if shard is not None:
                return shard
        return None

    def _exists(self, name: str) -> bool:
        return any((folder / name).exists() for folder in self._list_folders())

    def _list_folders(self) -> list[Path]:
        folders = (self._cache_dir.shared, self._cache_dir.attempt_folder / FOLDER)
        return [folder for folder in folders if folder is not None]

    def _build(self, name: str, piece: Array) -> Shard | None:
        """Write a shard; return None while another run is writing it."""
        cache_dir = self._cache_dir
        if cache_dir.shared is not None and self._has_space(
            int(self._bytes_per_sample * len(piece))
        ):
            with contextlib.suppress(_NoSpace):
                return self._write(cache_dir.shared, name, piece, with_images=True)
        while True:
            try:
                return self._write(
                    cache_dir.attempt_folder / FOLDER, name, piece, with_images=False
                )
            except _NoSpace as error:
                self._report(f"Waiting for disk space: {error}")
                time.sleep(WAIT_S)
                self._hooks.check_cancelled()

    def _write(self, folder: Path, name: str, piece: Array, *, with_images: bool) -> Shard | None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged, final = folder / f".{name}{BUILDING}", folder / name
        descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_kept = False
        try:
            # Between open and lock, another writer may have renamed the file that we opened.
            if not _try_lock(descriptor, fcntl.LOCK_EX) or not _is_at(descriptor, staged):
                return None
            if final.exists():  # another writer finished after our `_open` and before our lock
                staged.unlink()
                return None
            try:
                size_bytes = self._fill(descriptor, piece, with_images=with_images)
                if with_images:
                    self._bytes_per_sample = size_bytes / len(piece)
                    if not self._has_space(0):
                        raise _NoSpace("the cache is full")
                os.replace(staged, final)
                fsync_dir(folder)
            except BaseException as error:
                staged.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise _NoSpace(error.strerror) from error
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
        """Encode a piece into an open file; return its size in bytes."""
        with open(os.dup(descriptor), "r+b") as file:
            codec = self._encoder.codec
            writer = ShardWriter(file, with_images=with_images, codec=codec)
            self._source.expect(self._list_upcoming(piece))
            for at, number in enumerate(piece.tolist()):
                try:
                    item = self._source.read(number)
                except BrokenImage as broken:
                    writer.add_missing(str(broken) or type(broken).__name__, BROKEN)
                    self._count_broken(number, str(broken))
                except TooLong as refused:
                    writer.add_missing(str(refused), REFUSED)
                else:
                    writer.add(item)
                self._encoded += 1
                self._in_piece = at + 1
                self._check_cancelled()
            size_bytes: int = self._source.run(writer.finish)
            return size_bytes

    def _list_upcoming(self, piece: Array) -> list[int]:
        """Return the samples of a piece, and of the next one that is missing."""
        while self._missing and self._missing[0][1][0] <= piece[0]:
            self._missing.popleft()
        following = next((later for name, later in self._missing if not self._exists(name)), None)
        return [*piece.tolist(), *([] if following is None else following.tolist())]

    def _count_broken(self, number: int, reason: str) -> None:
        """Raise InvalidData as soon as too many images are broken, rather than hours later."""
        self._broken.add(self._samples.image_hashes[number].tobytes())
        if (
            len(self._broken) > MAX_BROKEN_SHARE * self._image_count
            and len(self._broken) > MAX_NAMED_BROKEN
        ):
            raise InvalidData(
                f"more than {MAX_BROKEN_SHARE:.0%} of the images of dataset {self._samples.name!r} "
                "cannot be decoded, "
                f"including {self._samples.filename(number)!r} ({reason}); try: export them again "
                "from their source"
            )

    def _has_space(self, needed_bytes: int) -> bool:
        cache_dir = self._cache_dir
        if cache_dir.root is None:
            return False
        cache_dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not evict_unused(cache_dir.root, needed_bytes, cache_dir.limit_bytes):
            return False
        return free_bytes(cache_dir.root) >= needed_bytes + cache_dir.spare_bytes

    def _check_cancelled(self) -> None:
        now_s = self._hooks.clock()
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._checked_s = now_s
            self._hooks.check_cancelled()
            self._report()

    def _report(self, message: str | None = None) -> None:
        now_s = self._hooks.clock()
        if now_s - self._reported_s < PROGRESS_EVERY_S:
            return
        self._reported_s = now_s
        self._hooks.on_progress(
            message or self._format_progress(self._done + self._in_piece, now_s - self._started_s)
        )

    def _format_progress(self, done: int, seconds: float) -> str:
        progress = f"Encoding images: {done:,} of {self._total:,} samples"
        if not self._encoded or seconds <= 0:
            return progress
        # Existing shards took no time; the remaining samples take as long as those encoded so far.
        rate = self._encoded / seconds
        return f"{progress}, {rate:,.0f}/s, {format_duration((self._total - done) / rate)} left"


class _NoSpace(Exception):
    """Neither the limit nor the disk leaves space for this shard."""


def format_duration(seconds: float) -> str:
    """Return a remaining time, as coarse as the estimate is."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def open_cached_shard(path: Path, *, count: int) -> Shard | None:
    """Open a complete shard, locked against eviction and marked as used; None if there is none.

    A damaged shard is removed.
    """
    descriptor = open_shard_file(path)
    if descriptor is None:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        if not _is_at(descriptor, path):  # evicted while we waited for the lock
            raise ShardDamaged("it was removed")
        shard = Shard(descriptor)
        if len(shard) != count:
            raise ShardDamaged(f"it has {len(shard)} samples, expected {count}")
        os.utime(descriptor)
        return shard
    except ShardDamaged:
        with contextlib.suppress(FileNotFoundError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)
        return None


def evict_unused(root: Path, needed_bytes: int, limit_bytes: int) -> bool:
    """Remove unused shards, least recently used first, until ``needed_bytes`` more fit.

    Return whether they do.
    """
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
        if _remove_if_unused(path):
            left -= size
    return left <= limit_bytes


def _remove_if_unused(path: Path) -> bool:
    """Remove a file unless another process has it locked; return whether it is gone."""
    descriptor = open_shard_file(path)
    if descriptor is None:
        return True
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            return False
        if _is_at(descriptor, path):
            path.unlink()
        return True
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file still has this path."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _raise_descriptor_limit(needed: int) -> None:
    """Raise the soft limit of open files, which is 1,024 only for programs that use ``select``.

    A shard takes two descriptors, because its memory map duplicates one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, target), hard))


def _report_broken(
    samples: SampleStore, numbers: Array, broken: dict[int, str], hooks: Hooks
) -> None:
    """Warn of each broken image by name; raise InvalidData when there are too many."""
    if not broken:
        return
    by_name = {samples.filename(number): reason for number, reason in broken.items()}
    total = samples.count_images(numbers)
    first = "; ".join(f"{name!r} ({reason})" for name, reason in list(by_name.items())[:3])
    if len(by_name) > MAX_BROKEN_SHARE * total:
        raise InvalidData(
            f"{len(by_name)} of {total} images of dataset {samples.name!r} cannot be decoded, more "
            "than "
            f"{MAX_BROKEN_SHARE:.0%}: {first}; try: export them again from their source, or remove "
            "them"
        )
    for name, reason in list(by_name.items())[:MAX_NAMED_BROKEN]:
        hooks.on_warning(f"image {name!r} cannot be decoded and is left out: {reason}")
    hooks.on_warning(f"{len(by_name)} of {total} images cannot be decoded and are left out")
