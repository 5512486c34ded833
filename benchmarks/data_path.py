"""Measure how images reach the model: encoding them, what is kept of each, and how long steps wait.

    .venv/bin/python benchmarks/data_path.py [--images 200] [--side 1024x768] [--steps 16]

Makes JPEGs (photograph-like noise), and encodes them with the processors of Qwen2.5-VL and SmolVLM
at their default limit on pixels, in one process and in two, whose files must have the same bytes.
Then batches of 8 are read from the cache for a simulated step of 300 ms on a device. Prints images
per second, the ratio, MiB per image, and the share of the time that steps wait for a batch. The
full form has ``--images 5000``. Exits with 1 if a limit is exceeded.
"""

import argparse
import hashlib
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from start_of_training import VERSION, make_version

FAMILIES = ("qwen2_5_vl", "smolvlm")
MIN_RATIO, MAX_MIB, MAX_WAIT_SHARE = 1.8, 2.5, 0.05
BATCH, STEP_S = 8, 0.3


def make_processor(family: str) -> Any:
    """Return a processor with a small tokenizer, limited as ``images.maxPixels`` auto does it."""
    import transformers as t

    from runyard.flows.blocks import Images
    from runyard.trainer.data.image_resolution import choose_max_pixels, limit_resolution
    from runyard.trainer.models import tiny
    from runyard.trainer.models.video import StandInVideoProcessor, install_video_stand_in

    install_video_stand_in()
    tokenizer = tiny.make_tokenizer([])
    template = tiny.CHAT_TEMPLATE
    if family == "smolvlm":
        images = t.SmolVLMImageProcessorPil(
            size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
        )
        processor = t.SmolVLMProcessor(
            images, tokenizer, StandInVideoProcessor(), image_seq_len=64, chat_template=template
        )
    else:
        tokens = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        processor = t.Qwen2_5_VLProcessor(
            image_processor=t.Qwen2VLImageProcessorPil(
                size={"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
            ),
            tokenizer=tokenizer,
            video_processor=StandInVideoProcessor(),
            chat_template=template.replace(
                tiny.IMAGE_TOKEN, "<|vision_start|><|image_pad|><|vision_end|>"
            ),
        )
    limit = choose_max_pixels(processor, family, Images())
    limit_resolution(None, processor, family, Images(max_pixels=limit.value), is_tiny=False)
    return processor


def encode(root: Path, family: str, processes: int, results: Any) -> None:
    """Encode all images; put bytes and a hash of all files, seconds, and seconds of CPU time."""
    cache, _, open_cache = prepare_cache(root, family)
    shutil.rmtree(cache, ignore_errors=True)
    began, cpu_before_s = time.monotonic(), read_cpu_seconds()
    encoded = open_cache(processes=processes)
    seconds, cpu_s = time.monotonic() - began, read_cpu_seconds() - cpu_before_s
    encoded.close()
    digest, size = hashlib.sha256(), 0
    for path in sorted(cache.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
        size += path.stat().st_size
    results.put(((size, digest.hexdigest()), seconds, cpu_s))


def measure_wait(root: Path, family: str, steps: int, results: Any) -> None:
    """Take simulated steps; put the share of waiting of those after the loader has decided."""
    from runyard.trainer.data.encode import Layout
    from runyard.trainer.steps.loading import PROBED_STEPS, WARM_UP_STEPS, BatchLoader

    _, selection, open_cache = prepare_cache(root, family)
    encoded = open_cache(processes=1)
    assert encoded.built == 0
    encodings = encoded.select(selection, Layout(pad_id=0))
    loader = BatchLoader(lambda indices, epoch: encodings.make_batch(indices), may_prepare=True)
    uncounted, shares = WARM_UP_STEPS + 2 * PROBED_STEPS + 1, []

    def choose(step: int) -> list[int]:
        return [(step * BATCH + at) % len(selection) for at in range(BATCH)]

    for step in range(uncounted + steps):
        loader.begin_step()
        loader.load(choose(step), 0)
        loader.prepare([choose(step + 1)], 0)
        time.sleep(STEP_S)
        shares.append(loader.end_step())
    before = statistics.fmean(shares[WARM_UP_STEPS : WARM_UP_STEPS + PROBED_STEPS])
    results.put((before, statistics.fmean(shares[uncounted:])))
    loader.close()
    encoded.close()


def prepare_cache(root: Path, family: str) -> tuple[Path, Any, Callable[..., Any]]:
    """Return the folder of encoded images, the samples, and a function that encodes them."""
    import torch

    from runyard.trainer.data.cache import CacheDir, Hooks, encode_all
    from runyard.trainer.data.encode import Encoder
    from runyard.trainer.data.templates import BuiltInTemplate
    from runyard.trainer.data.uploaded import SampleSelection, load_uploaded
    from runyard.trainer.families import get_family_parts

    torch.set_num_threads(1)
    processor = make_processor(family)
    parts = get_family_parts(family)
    renderer = BuiltInTemplate(processor)
    encoder = Encoder(processor, parts, system_prompt="", task="vqa", renderer=renderer)
    data = load_uploaded(
        root / "version",
        name="photographs",
        version=VERSION,
        task="vqa",
        seed=0,
        validation_fraction=0.0,
        max_samples=None,
    )
    assert isinstance(data.train, SampleSelection)
    cache = root / "cache" / family
    place = CacheDir(
        attempt_folder=root, root=cache, shared=cache, limit_bytes=1 << 60, spare_bytes=0
    )
    return cache, data.train, partial(encode_all, [data.train], encoder, place, Hooks())


def read_cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(each.ru_utime + each.ru_stime for each in used)


def call(function: Any, *given: Any) -> Any:
    """Return what ``function`` puts into a queue, from a process of its own."""
    context = get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=function, args=(*given, results))
    process.start()
    try:
        process.join()
    finally:
        process.kill()  # its workers end with it
    assert process.exitcode == 0, f"a process ended with {process.exitcode}"
    return results.get()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", default="1024x768", help="width x height of each image")
    parser.add_argument("--steps", type=int, default=16, help="simulated steps that count")
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all processes end
    width, _, height = given.side.partition("x")
    root, is_within = Path(tempfile.mkdtemp(prefix="runyard-benchmark-")), True
    try:
        make_version(root / "version", given.images, (int(width), int(height)))
        for family in given.families:
            found = {count: call(encode, root, family, count) for count in (1, 2)}
            (files, seconds, _), (same, seconds_of_two, _) = found[1], found[2]
            assert files == same, "the files differ"
            ratio, mib = seconds / seconds_of_two, files[0] / given.images / (1 << 20)
            for count, (_, elapsed_s, cpu_s) in found.items():
                rate, cpu_ms = given.images / elapsed_s, cpu_s / given.images * 1000
                print(f"{family:<11} {count}: {rate:6.1f} images/s, {cpu_ms:.0f} ms CPU per image")
            print(f"{family:<11} ratio     {ratio:6.2f} (at least {MIN_RATIO})")
            print(f"{family:<11} kept      {mib:6.2f} MiB per image (at most {MAX_MIB})")
            before, share = call(measure_wait, root, family, given.steps)
            print(
                f"{family:<11} waiting   {share:6.1%} of steps of {STEP_S * 1000:.0f} ms (at most "
                f"{MAX_WAIT_SHARE:.0%}); {before:.1%} without preparing"
            )
            is_within &= share <= MAX_WAIT_SHARE
            is_within &= ratio >= MIN_RATIO and mib <= MAX_MIB
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return int(not is_within)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
