"""Encoded samples on disk: bit-identical, shared, limited in size, complete after any kill."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from runyard.datasets.records import Freeform, GroundedPhrase, Interaction, PhraseGrounding, Vqa
from runyard.rundir import read_json
from runyard.trainer.answers import METRICS
from runyard.trainer.data import cache as cache_module
from runyard.trainer.data.cache import (
    CacheDir,
    EncodedShards,
    Hooks,
    encode_all,
    evict_unused,
    hash_settings,
)
from runyard.trainer.data.datasets import Dataset
from runyard.trainer.data.encode import Encoder, InMemoryEncodings, Layout
from runyard.trainer.data.shards import Shard, ShardWriter
from runyard.trainer.data.uploaded import SampleSelection, load_uploaded
from runyard.trainer.errors import InvalidData, StopRequested
from runyard.trainer.families import get_family_parts
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import load_processor
from runyard.trainer.models.tiny import SHAPES, make_processor

MakeVersion = Callable[..., Path]
Png = Callable[..., bytes]
EventsOf = Callable[[Path, str], list[dict[str, Any]]]
CONTEXT = multiprocessing.get_context("fork")
PER_SHARD = 4


@pytest.fixture(autouse=True)
def own_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor(SHAPES["vqa"], ["Look."], pixel_mean=0.5, pixel_std=0.5)


@pytest.fixture
def encoder(processor: Any) -> Encoder:
    return Encoder(processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa")


def make_questions(*answers: str) -> list[Vqa]:
    questions = [
        Interaction(order=n + 1, question=f"q{n}", answer=text) for n, text in enumerate(answers)
    ]
    return [Vqa(interactions=questions)]


def images(png: Png, numbers: range, *, of: int = 1) -> dict[str, tuple[bytes, list[Vqa]]]:
    """Images of three sizes, most of them not square."""
    sizes = [(24, 16), (16, 30), (40, 40)]
    return {
        f"{n:03}.png": (png(n, sizes[n % 3]), make_questions(*[str(n % 5)] * of)) for n in numbers
    }


def load(folder: Path, *, max_samples: int | None = None) -> Dataset:
    return load_uploaded(
        folder,
        name="shelves",
        version="0" * 16,
        task="vqa",
        seed=7,
        validation_fraction=0.2,
        max_samples=max_samples,
    )


def selections(data: Dataset) -> list[SampleSelection]:
    assert isinstance(data.train, SampleSelection) and isinstance(data.validation, SampleSelection)
    return [data.train, data.validation]


def shared_dir(root: Path, *, limit_bytes: int = 1 << 30) -> CacheDir:
    cache = root / "cache"
    return CacheDir(
        attempt_folder=root / "own",
        root=cache,
        shared=cache / "org" / "shelves",
        limit_bytes=limit_bytes,
        spare_bytes=0,
    )


def encoded(
    folder: Path, encoder: Encoder, cache_dir: CacheDir, hooks: Hooks | None = None
) -> EncodedShards:
    return encode_all(
        selections(load(folder)), encoder, cache_dir, hooks or Hooks(), per_shard=PER_SHARD
    )


def files(root: Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_size for path in (root / "cache").rglob("*") if path.is_file()
    }


def assert_same(data: Dataset, cached: EncodedShards, encoder: Encoder) -> None:
    """Samples from shards equal samples from memory, in every batch and every prompt."""
    layout = Layout(pad_id=0, answer_token_type=1)
    for part in selections(data):
        ours, theirs = (
            cached.select(part, layout),
            InMemoryEncodings([encoder.encode(s) for s in part], layout),
        )
        assert ours.lengths.tolist() == theirs.lengths.tolist()
        assert ours.longest_answer == theirs.longest_answer
        order = ours.sort_by_prompt_length(len(part))
        assert order == theirs.sort_by_prompt_length(len(part))
        groups = [order[start : start + 3] for start in range(0, len(order), 3)]
        for group in [*groups, list(range(len(part)))[::-1]]:
            one, two = ours.make_batch(group), theirs.make_batch(group)
            assert one.inputs.keys() == two.inputs.keys()
            assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)
            assert torch.equal(one.label_positions, two.label_positions)
            assert torch.equal(one.labels, two.labels)
        for group in groups:
            prompts, others = ours.make_prompts(group), theirs.make_prompts(group)
            assert all(torch.equal(prompts[name], others[name]) for name in (*prompts, *others))


@pytest.mark.parametrize("model_type", ["tiny", "llava", "qwen3_vl", "paligemma"])
def test_shards_restore_the_processors_output(
    model_type: str,
    miniature: Any,
    processor: Any,
    make_version: MakeVersion,
    png: Png,
    tmp_path: Path,
) -> None:
    if model_type != "tiny":
        processor = load_processor(miniature(model_type))
    family = "idefics3" if model_type == "tiny" else model_type
    encoder = Encoder(processor, get_family_parts(family), system_prompt="Look.", task="vqa")
    folder = make_version(images(png, range(9), of=2))
    for cache_dir in (shared_dir(tmp_path), CacheDir(attempt_folder=tmp_path / "own")):
        cached = encoded(folder, encoder, cache_dir)
        assert_same(load(folder), cached, encoder)
        again = encoded(folder, encoder, cache_dir)
        assert (cached.built > 0, again.built) == (True, 0)
        cached.close()
        again.close()


def test_questions_about_one_image_share_its_pixels(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    sizes = []
    for of in (1, 8):
        cached = encoded(
            make_version(images(png, range(6), of=of)), encoder, shared_dir(tmp_path / str(of))
        )
        sizes.append(sum(shard.size_bytes for shard in cached.shards))
        cached.close()
    assert sizes[1] < 2 * sizes[0]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_any_array_is_restored_with_its_dtype_and_bits(kind: type, tmp_path: Path) -> None:
    """Also floats that no 8-bit value has made, negative zero, and NaN."""
    from runyard.trainer.data.encode import EncodedSample

    random = np.random.default_rng(0)
    pixels: list[Any] = [random.integers(0, n, 70_000).astype(kind) for n in (5, 300, 1 << 30)]
    if kind != np.int64:
        pixels[0][:2] = (-0.0, np.nan)
    with open(tmp_path / "file", "w+b") as file:
        writer = ShardWriter(file, with_images=True)
        for array in pixels:
            writer.add(
                EncodedSample(
                    np.arange(3), np.arange(2), {}, {"pixel_values": array.reshape(2, -1)}
                )
            )
        assert writer.finish() == (tmp_path / "file").stat().st_size
    shard = Shard(os.open(tmp_path / "file", os.O_RDWR))
    for number, array in enumerate(pixels):
        found = shard.read_images(number)
        assert found is not None
        restored = found["pixel_values"].restore(shard.tables)
        assert restored.dtype == kind
        assert restored.tobytes() == array.tobytes()
    assert shard.prompt_lengths.tolist() == [3, 3, 3]
    shard.close()


def test_added_images_rewrite_few_shards(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    cache_dir = shared_dir(tmp_path)
    first = encoded(make_version(images(png, range(100))), encoder, cache_dir)
    whole = images(png, range(100))
    whole["050b.png"], whole["077b.png"] = (
        (png(500), make_questions("x")),
        (png(501), make_questions("y")),
    )
    second = encoded(make_version(whole), encoder, cache_dir)
    assert first.built > 10
    assert 1 <= second.built <= 4
    assert second.built < len(second.shards) - 5
    first.close()
    second.close()


@pytest.mark.parametrize("changed", ["prompt", "processor", "answer"])
def test_whatever_determines_the_content_determines_the_name(
    changed: str,
    make_version: MakeVersion,
    png: Png,
    processor: Any,
    encoder: Encoder,
    tmp_path: Path,
) -> None:
    cache_dir, data = shared_dir(tmp_path), images(png, range(5))
    encoded(make_version(data), encoder, cache_dir).close()
    if changed == "prompt":
        encoder = Encoder(
            processor, get_family_parts("idefics3"), system_prompt="Look!", task="vqa"
        )
    elif changed == "processor":
        other = make_processor(SHAPES["vqa"], ["Look."], pixel_mean=0.5, pixel_std=0.4)
        encoder = Encoder(other, get_family_parts("idefics3"), system_prompt="Look.", task="vqa")
    else:
        data = {name: (image, make_questions("other")) for name, (image, _) in data.items()}
    again = encoded(make_version(data), encoder, cache_dir)
    assert again.built == len(again.shards)
    again.close()


@pytest.mark.parametrize("model_type", ["tiny", "llava", "qwen3_vl", "paligemma"])
def test_a_processor_that_was_saved_and_loaded_again_has_the_same_name(
    model_type: str, processor: Any, miniature: Any, tmp_path: Path
) -> None:
    """So a resumed run finds the shards of the previous attempt."""
    keys = set()
    if model_type != "tiny":
        processor = load_processor(miniature(model_type))
    family = "idefics3" if model_type == "tiny" else model_type
    for round_trip in range(3):
        encoder = Encoder(processor, get_family_parts(family), system_prompt="Look.", task="vqa")
        keys.add(hash_settings(encoder))
        processor.save_pretrained(tmp_path / str(round_trip))
        processor = load_processor(tmp_path / str(round_trip))
    assert len(keys) == 1


def build(folder: Path, root: Path, processor: Any, pause_s: float, results: Any) -> None:
    encoder = Encoder(processor, get_family_parts("idefics3"), system_prompt="Look.", task="vqa")
    encode, times = encoder.encode, []

    def slowly(sample: Any) -> Any:
        times.append(1)
        time.sleep(pause_s)
        return encode(sample)

    encoder.encode = slowly  # type: ignore[method-assign, assignment]
    cached = encoded(folder, encoder, shared_dir(root))
    results.put((len(times), cached.built, len(cached.shards)))


def test_a_killed_builder_leaves_complete_shards_and_its_partial_one_is_restarted(
    make_version: MakeVersion, png: Png, encoder: Encoder, processor: Any, tmp_path: Path
) -> None:
    folder, results = make_version(images(png, range(24))), CONTEXT.Queue()
    survived = 0
    for _ in range(3):
        victim = CONTEXT.Process(target=build, args=(folder, tmp_path, processor, 0.02, results))
        victim.start()
        # Killed while it writes, and once at least one more file is complete.
        while not (
            len(whole := [n for n in files(tmp_path) if n[0] != "."]) > survived
            and files(tmp_path).keys() > {*whole}
        ):
            assert victim.is_alive()
            time.sleep(0.005)
        os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
        survived = len(whole)
    before = {name for name in files(tmp_path) if name[0] != "."}
    cached = encoded(folder, encoder, shared_dir(tmp_path))
    assert cached.built == len(cached.shards) - len(before)
    assert_same(load(folder), cached, encoder)
    assert all(name[0] != "." for name in files(tmp_path))
    cached.close()


def test_two_concurrent_builders_share_the_work(
    make_version: MakeVersion, png: Png, encoder: Encoder, processor: Any, tmp_path: Path
) -> None:
    folder, results = make_version(images(png, range(24))), CONTEXT.Queue()
    running = [
        CONTEXT.Process(target=build, args=(folder, tmp_path, processor, 0.01, results))
        for _ in range(2)
    ]
    for process in running:
        process.start()
    outcomes = [results.get(timeout=30) for _ in running]
    for process in running:
        process.join()
    assert sum(times for times, _, _ in outcomes) == 24  # nothing was encoded twice
    assert sum(built for _, built, _ in outcomes) == outcomes[0][2]
    assert min(built for _, built, _ in outcomes) > 0
    cached = encoded(folder, encoder, shared_dir(tmp_path))
    assert cached.built == 0
    assert_same(load(folder), cached, encoder)
    cached.close()


def test_the_limit_holds_and_shards_in_use_stay(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    first = make_version(images(png, range(20)))
    cached = encoded(first, encoder, shared_dir(tmp_path))
    limit = sum(files(tmp_path).values()) * 3 // 2
    used = set(files(tmp_path))
    cache_dir = shared_dir(tmp_path, limit_bytes=limit)
    second = encoded(make_version(images(png, range(100, 120))), encoder, cache_dir)
    assert sum(files(tmp_path).values()) <= limit
    assert used <= set(files(tmp_path))  # in use by the first
    assert any(path.is_file() for path in (tmp_path / "own").rglob("*"))  # the rest keeps no pixels
    assert_same(load(first.with_name(f"{1:016x}")), second, encoder)
    cached.close()
    second.close()
    third = encoded(make_version(images(png, range(200, 220))), encoder, cache_dir)
    assert sum(files(tmp_path).values()) <= limit
    assert not used & set(files(tmp_path))  # used longest ago
    third.close()


def test_a_full_disk_stores_no_pixels_and_changes_no_sample(
    make_version: MakeVersion,
    png: Png,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_module, "free_bytes", lambda _: -1)
    folder = make_version(images(png, range(6)))
    cached = encoded(folder, encoder, shared_dir(tmp_path))
    assert files(tmp_path) == {}
    assert_same(load(folder), cached, encoder)
    cached.close()


def test_a_damaged_shard_is_written_again(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    folder, cache_dir = make_version(images(png, range(12))), shared_dir(tmp_path)
    encoded(folder, encoder, cache_dir).close()
    torn = sorted((tmp_path / "cache").rglob("*"))[-1]
    torn.write_bytes(torn.read_bytes()[:-9])
    cached = encoded(folder, encoder, cache_dir)
    assert cached.built == 1
    assert_same(load(folder), cached, encoder)
    cached.close()


def test_unused_shards_are_evicted_least_recently_used_first(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(bytes(100))
        os.utime(tmp_path / f"{number}", (number, number))
    assert evict_unused(tmp_path, 50, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert not evict_unused(tmp_path, 300, 250)


def test_building_reports_progress_and_checks_for_cancellation(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    folder, now = make_version(images(png, range(40))), [0.0]
    messages: list[tuple[float, str]] = []

    def clock() -> float:
        now[0] += 0.06
        return now[0]

    hooks = Hooks(on_progress=lambda message: messages.append((now[0], message)), clock=clock)
    encoded(folder, encoder, shared_dir(tmp_path), hooks).close()
    assert all(later - earlier >= 1 for (earlier, _), (later, _) in itertools.pairwise(messages))
    assert len(messages) >= 3
    assert " of 40 samples, " in messages[-1][1]
    assert messages[-1][1].endswith(" left")
    checks: list[int] = []

    def stop() -> None:
        checks.append(1)
        if len(checks) == 5:
            raise StopRequested

    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(StopRequested):
        encoded(folder, encoder, shared_dir(tmp_path), Hooks(check_cancelled=stop, clock=clock))
    assert all(name[0] != "." for name in files(tmp_path))


def test_broken_images_are_reported_and_left_out(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    data = images(png, range(60))
    whole = png(999, (64, 64))
    data["042.png"] = (whole[: len(whole) // 2], make_questions("x", "y"))
    folder, messages = make_version(data), list[str]()
    for _ in range(2):  # the second time from the shards
        messages.clear()
        cached = encoded(folder, encoder, shared_dir(tmp_path), Hooks(on_warning=messages.append))
        assert [cached.samples.filename(number) for number in cached.broken] == [
            "042.png",
            "042.png",
        ]
        assert len(messages) == 2
        assert "image '042.png' cannot be decoded and is left out: " in messages[0]
        assert messages[1] == "1 of 60 images cannot be decoded and are left out"
        cached.close()


def test_an_image_of_another_size_is_left_out_until_the_dataset_is_imported_again(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    data, messages = images(png, range(60)), list[str]()
    for claimed, broken in (({"003.png": (16, 24)}, ["003.png"]), ({}, [])):
        folder = make_version(data, claimed_sizes=claimed)
        for _ in range(2):  # the second time from the shards
            hooks = Hooks(on_warning=messages.append)
            cached = encoded(folder, encoder, shared_dir(tmp_path), hooks)
            assert [cached.samples.filename(number) for number in cached.broken] == broken
            cached.close()
    assert "'003.png' cannot be decoded and is left out: it has 24 x 16 pixels" in messages[0]


def test_too_many_broken_images_end_the_run(
    make_version: MakeVersion, png: Png, encoder: Encoder, tmp_path: Path
) -> None:
    data = images(png, range(30))
    for name in ("003.png", "004.png"):
        data[name] = (data[name][0][:-30], data[name][1])
    with pytest.raises(InvalidData, match=r"2 of 30 images .* more than 5%: '003.png' \("):
        encoded(make_version(data), encoder, shared_dir(tmp_path))


def test_unstored_images_are_decoded_on_each_use_and_those_of_small_data_once(
    make_version: MakeVersion,
    png: Png,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = load(make_version(images(png, range(6))))
    cached = encode_all(
        selections(data), encoder, CacheDir(attempt_folder=tmp_path / "own"), Hooks()
    )
    layout, decoded = Layout(pad_id=0), 0
    as_ever = encoder.encode

    def counted(sample: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return as_ever(sample)

    monkeypatch.setattr(encoder, "encode", counted)
    for memory_bytes, times in ((0, 2), (1 << 20, 1)):
        monkeypatch.setattr("runyard.trainer.data.cache.IN_MEMORY_BYTES", memory_bytes)
        part, decoded = cached.select(selections(data)[0], layout), 0
        one, two = part.make_batch([0, 1]), part.make_batch([0, 1])
        assert decoded == 2 * times
        assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)


# Complete attempts.


BLOCKS: dict[str, dict[str, Any]] = {
    "vi-dataset": {
        "datasetId": "shelves",
        "datasetVersion": "0" * 16,
        "projectKind": "vqa",
        "augmentation": {},
        "validationFraction": 0.2,
    },
    "vi-model": {
        "hyperparameters": {"maxSteps": 6, "batchSize": 16},
        "validation": {"maxSamples": 4},
        "checkpoint": {"keep": 9},
    },
}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_json(folder / "result.json") or {}
    root = folder / "checkpoints" / str(checkpoint["checkpoint"])
    weights: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    weights |= load_file(root / "training_state" / "state.safetensors")
    return weights


def assign_version(attempt: Path, version: Path) -> Path:
    document = {"folder": str(version), "dataset": "shelves", "version": "0" * 16}
    (attempt / "dataset.json").write_text(json.dumps(document))
    return attempt


def test_a_run_ends_the_same_with_and_without_cache_and_originals(
    make_attempt: Callable[..., Path], make_version: MakeVersion, png: Png, events_of: EventsOf
) -> None:
    version = make_version(images(png, range(40), of=2))
    folders = []
    for run, cache_bytes in (("with", 1 << 30), ("without", 0), ("again", 1 << 30)):
        folder = assign_version(make_attempt(BLOCKS, run=run, cache_bytes=cache_bytes), version)
        if run == "again":
            shutil.rmtree(version / "packs")
        assert train_attempt(folder) == 0
        folders.append(folder)
    one, *others = map(weights_of, folders)
    for other in others:
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    outcomes = [event["values"]["loss"] for event in events_of(folders[0], "step")]
    assert outcomes == [event["values"]["loss"] for event in events_of(folders[1], "step")]
    (plan,) = (event["plan"] for event in events_of(folders[2], "plan"))
    sizes = {name: plan[name]["value"] for name in ("dataset", "datasetVersion", "brokenPictures")}
    assert sizes == {"dataset": "shelves", "datasetVersion": "0" * 16, "brokenPictures": 0}
    assert plan["trainingPictures"]["value"] + plan["validationPictures"]["value"] == 40
    assert plan["trainingSamples"]["value"] == 2 * plan["trainingPictures"]["value"]
    saved = read_json(folders[0] / "checkpoints" / "step-6" / "model_full" / "run.json") or {}
    assert saved["status"]["plan"]["datasetVersion"]["value"] == "0" * 16


def test_a_run_uses_the_dataset_s_own_split_and_no_test_image(
    make_attempt: Callable[..., Path], make_version: MakeVersion, png: Png, events_of: EventsOf
) -> None:
    data = images(png, range(24))
    names = list(data)
    splits = dict.fromkeys(names[:16], "train") | dict.fromkeys(names[16:20], "validation")
    for name in names[20:]:
        splits[name] = "test"
        # Reading it would be a warning.
        data[name] = (f"not an image {name}".encode(), data[name][1])
    folder = assign_version(make_attempt(BLOCKS, cache_bytes=1 << 30), make_version(data, splits))
    assert train_attempt(folder) == 0
    assert events_of(folder, "warning") == []
    (plan,) = (event["plan"] for event in events_of(folder, "plan"))
    counts = ("trainingPictures", "validationPictures", "brokenPictures", "unusedImages")
    assert [plan[name]["value"] for name in counts] == [16, 4, 0, 4]
    assert "validationFraction does not change it" in plan["trainingPictures"]["reason"]
    for path in (folder / "predictions").iterdir():
        predicted = [json.loads(line)["filename"] for line in path.read_text().splitlines()]
        assert sorted(predicted) == names[16:20]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    cache_bytes: int,
    make_attempt: Callable[..., Path],
    make_version: MakeVersion,
    png: Png,
    events_of: EventsOf,
) -> None:
    version = make_version(images(png, range(40)))
    whole = assign_version(make_attempt(BLOCKS, run="whole", cache_bytes=cache_bytes), version)
    assert train_attempt(whole) == 0
    cache = version.parents[2] / "cache"
    before = set(cache.glob("*/*/*"))
    second = assign_version(
        make_attempt(
            BLOCKS, run="cut", resume=whole / "checkpoints" / "epoch-1", cache_bytes=cache_bytes
        ),
        version,
    )
    assert train_attempt(second) == 0
    assert before == set(cache.glob("*/*/*"))
    assert bool(before) == bool(cache_bytes)
    assert [event["step"] for event in events_of(second, "step")] == [3, 4, 5, 6]
    one, two = weights_of(whole), weights_of(second)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize("task", ["phrase-grounding", "freeform"])
def test_the_other_tasks_train_on_uploaded_data_too(
    task: str,
    make_attempt: Callable[..., Path],
    make_version: MakeVersion,
    png: Png,
    events_of: EventsOf,
) -> None:
    phrases = [
        GroundedPhrase(
            phrase="a box", start_token_index=0, end_token_index=2, bounds=[(0.1, 0.2, 0.6, 0.9)]
        )
    ]
    grounded = PhraseGrounding(caption="a box", grounded_phrases=phrases)
    contents = grounded if task == "phrase-grounding" else Freeform(text="noise")
    version = make_version({f"{n:02}.png": (png(n), [contents]) for n in range(40)})
    blocks = {**BLOCKS, "vi-dataset": {**BLOCKS["vi-dataset"], "projectKind": task}}
    folder = assign_version(make_attempt(blocks, cache_bytes=1 << 30), version)
    assert train_attempt(folder) == 0
    evaluation = events_of(folder, "evaluation")[0]
    assert set(evaluation["values"]) == {f"validation/{name}" for name in ("loss", *METRICS[task])}
    (preview, *_) = evaluation["previews"]
    assert preview["question"] == (
        "a box" if task == "phrase-grounding" else "Describe the picture."
    )
    losses = [event["values"]["loss"] for event in events_of(folder, "step")]
    assert losses[-1] < losses[0]


def test_a_broken_image_is_a_warning_of_the_run(
    make_attempt: Callable[..., Path], make_version: MakeVersion, png: Png, events_of: EventsOf
) -> None:
    data = images(png, range(40))
    data["007.png"] = (data["007.png"][0][:200], data["007.png"][1])
    folder = assign_version(make_attempt(BLOCKS, cache_bytes=1 << 30), make_version(data))
    assert train_attempt(folder) == 0
    assert "'007.png' cannot be decoded" in events_of(folder, "warning")[0]["message"]
    (plan,) = (event["plan"] for event in events_of(folder, "plan"))
    assert plan["brokenPictures"]["value"] == 1
    assert plan["trainingPictures"]["value"] + plan["validationPictures"]["value"] == 39


@pytest.mark.parametrize("what", ["problem", "damaged"])
def test_missing_data_ends_the_attempt(
    what: str, make_attempt: Callable[..., Path], make_version: MakeVersion, png: Png
) -> None:
    folder = assign_version(make_attempt(BLOCKS), make_version(images(png, range(40))))
    if what == "problem":
        (folder / "dataset.json").write_text(json.dumps({"folder": "x", "problem": "it is lost"}))
        assert train_attempt(folder) == 64
        result = read_json(folder / "result.json") or {}
        assert (result["reason"], result["message"]) == ("InvalidData", "it is lost")
    else:  # a failure of the machine: the next attempt verifies the copy again
        home = Path(str((read_json(folder / "dataset.json") or {})["folder"]))
        shutil.rmtree(home / "packs")
        assert train_attempt(folder) == 1
        assert not (folder / "result.json").exists()
        assert not (home / "complete.json").exists()
