"""Worker processes that encode samples: same results in order, and none is left behind."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.datasets.pixels import BrokenImage
from runyard.datasets.records import Interaction, Vqa
from runyard.processes import IS_LINUX
from runyard.trainer.data import workers as workers_module
from runyard.trainer.data.cache import CacheDir, EncodedShards, Hooks, encode_all
from runyard.trainer.data.datasets import Dataset
from runyard.trainer.data.encode import EncodedSample, Encoder, pack_images
from runyard.trainer.data.image_resolution import TooLong
from runyard.trainer.data.pixels import PackedArray, PixelCodec
from runyard.trainer.data.uploaded import SampleSelection, load_uploaded
from runyard.trainer.data.workers import SampleSource, SampleWorkers
from runyard.trainer.errors import StopRequested
from runyard.trainer.families import get_family_parts
from runyard.trainer.models.model import load_processor
from runyard.trainer.models.tiny import SHAPES, make_processor

MakeVersion = Callable[..., Path]
Png = Callable[..., bytes]


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers however little they gain."""
    monkeypatch.setattr(workers_module, "MIN_GAIN_S", 0.0)


def make_sample(number: int) -> EncodedSample:
    pixels = np.full((1, 3, 8, 8), number % 256, np.float32)
    return EncodedSample(
        np.arange(number % 7),
        np.arange(2),
        {"token_type_ids": np.arange(number % 7)},
        {"pixel_values": PixelCodec().pack(pixels)},
        is_shrunk=number % 2 == 1,
    )


def assert_equal(one: EncodedSample | None, two: EncodedSample) -> None:
    assert one is not None
    assert one.prompt.tolist() == two.prompt.tolist()
    assert one.answer.tolist() == two.answer.tolist()
    assert one.token_fields.keys() == two.token_fields.keys()
    assert one.is_shrunk == two.is_shrunk
    assert all(one.images[name].is_same(two.images[name]) for name in two.images)


@pytest.fixture
def start() -> Iterator[Callable[..., SampleWorkers]]:
    started: list[SampleWorkers] = []

    def begin(encode: Any, count: int = 2, **more: Any) -> SampleWorkers:
        started.append(SampleWorkers(encode, count, **more))
        return started[-1]

    yield begin
    for workers in started:
        workers.close()


def children() -> set[int]:
    """Return the processes below this one."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in text.split()}


def is_gone(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def test_results_come_in_order_whichever_worker_was_first(start: Any) -> None:
    def encode(number: int) -> EncodedSample:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return make_sample(number)

    workers = start(encode, 3)
    workers.expect(range(30))
    for number in range(30):
        assert_equal(workers.read(number, lambda: None), make_sample(number))


def test_results_that_are_no_longer_expected_are_dropped(start: Any) -> None:
    workers = start(make_sample)
    workers.expect(range(20))
    assert_equal(workers.read(0, lambda: None), make_sample(0))
    workers.expect([50, 3, 51])
    for number in (50, 3, 51):
        assert_equal(workers.read(number, lambda: None), make_sample(number))
    assert workers.read(1, lambda: None) is None  # to be encoded by this process


def test_errors_of_a_sample_are_raised_and_others_are_left_to_this_process(start: Any) -> None:
    def encode(number: int) -> EncodedSample:
        if number < 3:
            raise (BrokenImage("cut off"), TooLong("900 tokens"), OSError("damaged"))[number]
        return make_sample(number)

    workers = start(encode)
    workers.expect(range(4))
    with pytest.raises(BrokenImage, match="cut off"):
        workers.read(0, lambda: None)
    with pytest.raises(TooLong, match="900 tokens"):
        workers.read(1, lambda: None)
    assert workers.read(2, lambda: None) is None
    assert_equal(workers.read(3, lambda: None), make_sample(3))


def test_samples_of_one_image_go_to_one_worker(start: Any) -> None:
    def encode(number: int) -> EncodedSample:
        time.sleep(0.005)
        return EncodedSample(np.asarray([os.getpid()]), np.arange(1), {}, {})

    workers = start(encode, 3, near=lambda one, other: one // 4 == other // 4)
    workers.expect(range(24))
    found = [workers.read(number, lambda: None) for number in range(24)]
    pids = [int(item.prompt[0]) for item in found if item is not None]
    assert all(len(set(pids[start : start + 4])) == 1 for start in range(0, 24, 4))
    assert len(set(pids)) > 1


def test_few_results_are_ahead_of_the_reader(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "AHEAD_BYTES", 0)
    workers = start(make_sample, 2)
    workers.expect(range(1000))
    for number in range(20):
        workers.receive(0.01)
        assert_equal(workers.read(number, lambda: None), make_sample(number))
        assert len(workers._results) <= 3 * 2


def test_a_hung_worker_is_replaced_by_this_process(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "SAMPLE_TIMEOUT_S", 0.5)

    def encode(number: int) -> EncodedSample:
        if number == 1:
            time.sleep(60)
        return make_sample(number)

    workers = start(encode, 2)
    workers.expect(range(10))
    found = [workers.read(number, lambda: None) for number in range(10)]
    assert found[1] is None
    for number, item in enumerate(found):
        if item is not None:
            assert_equal(item, make_sample(number))
    assert sum(item is None for item in found) <= workers_module.TASKS_PER_WORKER


@pytest.mark.skipif(not IS_LINUX, reason="needs /proc")
def test_a_lost_worker_is_replaced_by_this_process(start: Any) -> None:
    before = children()
    workers = start(make_sample, 2)
    victims = children() - before
    assert len(victims) == 2
    workers.expect(range(12))
    os.kill(min(victims), signal.SIGKILL)
    found = [workers.read(number, lambda: None) for number in range(12)]
    assert None in found or len(found) == 12
    os.kill(max(victims), signal.SIGKILL)
    workers.expect(range(12, 15))
    found = [workers.read(number, lambda: None) for number in range(12, 15)]
    assert found == [None] * 3


def test_work_of_this_process_goes_on_while_results_arrive(start: Any) -> None:
    workers = start(make_sample, 2)
    workers.expect(range(8))

    def work() -> int:
        time.sleep(0.1)
        return 7

    assert workers.run(work) == 7
    assert len(workers._results) == 8
    with pytest.raises(OSError, match="full"):
        workers.run(lambda: (_ for _ in ()).throw(OSError("full")))


@pytest.mark.skipif(not IS_LINUX, reason="needs /proc")
def test_a_stop_ends_the_workers_at_once() -> None:
    def encode(number: int) -> EncodedSample:
        time.sleep(60 if number > 3 else 0)
        return make_sample(number)

    before, checks = children(), list[int]()

    def check() -> None:
        checks.append(1)
        if len(checks) > 2:
            raise StopRequested

    source = SampleSource(encode, total=100, processes=2, check=check)
    source.expect(range(100))
    for number in range(4):
        assert_equal(source.read(number), make_sample(number))
    assert len(children() - before) == 2
    with pytest.raises(StopRequested):
        source.read(4)
    source.close()
    assert children() == before


@pytest.mark.parametrize(("total", "processes"), [(100, 1), (2, 8)])
def test_one_core_or_few_samples_need_no_worker(total: int, processes: int) -> None:
    source = SampleSource(make_sample, total=total, processes=processes)
    source.expect(range(total))
    for number in range(total):
        assert_equal(source.read(number), make_sample(number))
    assert source._workers is None


def test_quick_samples_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "MIN_GAIN_S", 10.0)
    source = SampleSource(make_sample, total=50, processes=8)
    source.expect(range(50))
    for number in range(50):
        source.read(number)
    assert source._workers is None


@pytest.mark.skipif(not IS_LINUX, reason="the kernel ends workers on Linux")
def test_a_killed_process_leaves_no_worker_and_no_open_file(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    read_end, write_end = os.pipe()
    victim = os.fork()
    if victim == 0:

        def encode(number: int) -> EncodedSample:
            time.sleep(60)
            return make_sample(number)

        workers = SampleWorkers(encode, 3)
        workers.expect(range(9))
        os.write(write_end, b"".join(w.pid.to_bytes(4, "little") for w in workers._workers))
        time.sleep(60)
        os._exit(0)
    data = os.read(read_end, 12)
    pids = [int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8)]
    deadline = time.monotonic() + 20
    held = [True]
    while any(held) and time.monotonic() < deadline:  # a worker closes files as it starts
        held = [
            "lock" in str(entry.readlink())
            for pid in pids
            for entry in Path(f"/proc/{pid}/fd").iterdir()
            if entry.is_symlink()
        ]
        time.sleep(0.01)
    assert held and not any(held)
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    while not all(map(is_gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(is_gone, pids))
    for descriptor in (lock, read_end, write_end):
        os.close(descriptor)


# Shards of a whole dataset.


def make_images(png: Png, count: int) -> dict[str, tuple[bytes, list[Vqa]]]:
    def ask(number: int) -> list[Vqa]:
        questions = [
            Interaction(order=at + 1, question=f"q{at}", answer=str(number)) for at in range(2)
        ]
        return [Vqa(interactions=questions)]

    sizes = [(24, 16), (16, 30), (40, 40)]
    return {f"{n:03}.png": (png(n, sizes[n % 3]), ask(n)) for n in range(count)}


def load(folder: Path) -> Dataset:
    return load_uploaded(
        folder,
        name="shelves",
        version="0" * 16,
        task="vqa",
        seed=7,
        validation_fraction=0.2,
        max_samples=None,
    )


def encode_data(
    folder: Path, encoder: Encoder, root: Path, processes: int, hooks: Hooks | None = None
) -> EncodedShards:
    data, cache = load(folder), root / "cache"
    assert isinstance(data.train, SampleSelection) and isinstance(data.validation, SampleSelection)
    return encode_all(
        [data.train, data.validation],
        encoder,
        CacheDir(
            attempt_folder=root, root=cache, shared=cache / "o", limit_bytes=1 << 30, spare_bytes=0
        ),
        hooks or Hooks(),
        per_shard=6,
        processes=processes,
    )


def read_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "cache" / "o").iterdir()}


@pytest.fixture(scope="module")
def tiny_processor() -> Any:
    return make_processor(SHAPES["vqa"], ["Look."], pixel_mean=0.5, pixel_std=0.5)


@pytest.mark.parametrize("model_type", ["tiny", "qwen2_5_vl"])
def test_shards_have_the_same_bytes_for_any_number_of_workers(
    model_type: str,
    tiny_processor: Any,
    miniature: Any,
    make_version: MakeVersion,
    png: Png,
    tmp_path: Path,
) -> None:
    """Also with a broken image, and a template that is rendered in a process of its own."""
    processor = tiny_processor
    if model_type != "tiny":
        processor = load_processor(miniature(model_type))
    family = "idefics3" if model_type == "tiny" else model_type
    encoder = Encoder(processor, get_family_parts(family), system_prompt="Look.", task="vqa")
    images = make_images(png, 40)
    images["017.png"] = (png(99, (64, 64))[:-2000], images["017.png"][1])
    folder, found, warnings = make_version(images), [], list[str]()
    for processes in (1, 2, 3):
        hooks = Hooks(on_warning=warnings.append)
        encoded = encode_data(folder, encoder, tmp_path / str(processes), processes, hooks)
        assert encoded.built == len(encoded.shards) > 2
        assert len(encoded.broken) == 2
        encoded.close()
        found.append(read_files(tmp_path / str(processes)))
    assert found[0] == found[1] == found[2]
    assert len(set(warnings)) == 2


def test_two_builders_with_workers_share_the_work(
    tiny_processor: Any, make_version: MakeVersion, png: Png, tmp_path: Path, fork: Any
) -> None:
    folder = make_version(make_images(png, 40))

    def build() -> int:
        encoder = Encoder(
            tiny_processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa"
        )
        as_ever = encoder.encode

        def slowly(sample: Any) -> EncodedSample:
            time.sleep(0.005)
            return as_ever(sample)

        encoder.encode = slowly  # type: ignore[method-assign, assignment]
        encoded = encode_data(folder, encoder, tmp_path, 2)
        return 10 if 0 < encoded.built < len(encoded.shards) else 20

    running = [fork(build), fork(build)]
    assert [process.wait(60) for process in running] == [10, 10]
    encoder = Encoder(
        tiny_processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa"
    )
    encode_data(folder, encoder, tmp_path / "alone", 1).close()
    assert read_files(tmp_path) == read_files(tmp_path / "alone")


def test_a_packed_sample_survives_the_way_between_processes(tiny_processor: Any) -> None:
    encoded = pack_images(make_sample(5), PixelCodec(tiny_processor.image_processor))
    parts = [bytes(part) for part in workers_module._pack(encoded)]
    header_size, body_size = workers_module._LENGTHS.unpack(parts[0])
    body = bytearray(b"".join(parts[2:]))
    assert (len(parts[1]), len(body)) == (header_size, body_size)
    again = workers_module._unpack(bytearray(parts[1]), body)
    assert isinstance(again, EncodedSample)
    assert_equal(again, encoded)
    assert isinstance(again.images["pixel_values"], PackedArray)
