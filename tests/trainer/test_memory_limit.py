"""Real trainers in a memory cgroup that suffices for training, but not for evaluating 64 samples
at once.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runyard.datasets.records import Interaction, Vqa
from runyard.rundir import list_checkpoints, read_json
from runyard.trainer.checkpoints.checkpoint import is_proven, read_progress
from tests.trainer import miniatures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("memory_kills")]
CGROUPS = Path("/sys/fs/cgroup/memory")
LIMIT_BYTES = 640 << 20
SIDE = 512  # of the images, of which each takes 3 MiB
EventsOf = Callable[[Path, str], list[dict[str, Any]]]

TRAINER = """
import os, sys
from pathlib import Path
import runyard.trainer.evaluation.evaluation as evaluation
from runyard.trainer.main import train_attempt
group, folder, measures = sys.argv[1:]
Path(group, "cgroup.procs").write_text(str(os.getpid()))
if measures == "False":
    evaluation.fit_to_memory = lambda *_: None
sys.exit(train_attempt(Path(folder)))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with few weights for large images."""
    import transformers as t

    tokenizer, folder = miniatures.make_tokenizer(), tmp_path_factory.mktemp("wide")
    text = miniatures.make_text_config(tokenizer, model_type="llama", num_hidden_layers=1)
    config = t.Idefics3Config(
        text_config=text,
        vision_config=miniatures.make_vision_config(patch_size=32, image_size=SIDE),
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    longest = {"longest_edge": SIDE}
    images = t.Idefics3ImageProcessorPil(
        size=longest, max_image_size=longest, do_image_splitting=False
    )
    template = miniatures.make_chat_template("<image>")
    torch.manual_seed(0)
    t.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    t.Idefics3Processor(
        images, tokenizer, image_seq_len=16, chat_template=template
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A memory cgroup with the limit."""
    group = CGROUPS / f"runyard-evaluation-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 to write to: {error}")
    yield group
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)


@pytest.fixture
def prepare_attempt(
    weights: Path,
    make_attempt: Callable[..., Path],
    make_version: Callable[..., Path],
    png: Callable[..., bytes],
) -> Callable[..., Path]:
    """Return a function that makes an attempt of four steps; two are between evaluations of 64."""
    record = Vqa(interactions=[Interaction(order=1, question="What?", answer="two")])
    images = {f"{number:02}.png": (png(number), [record]) for number in range(72)}
    splits = {name: "train" if number < 8 else "validation" for number, name in enumerate(images)}
    version = str(make_version(images, splits))
    every = {"every": {"steps": 2}}
    model = {
        "architecture": {"weights": str(weights), "name": "auto"},
        "training": {"mode": "full"},
        "hyperparameters": {"maxSteps": 4, "batchSize": 2, "microBatchSize": 1},
        "validation": {"maxSamples": 64, **every},
        "checkpoint": every,
        "evaluation": {"max_new_tokens": 2},
        "compute": {"featureCache": False, "precisionType": "float32"},
        "packing": False,
    }

    def prepare(**named: Any) -> Path:
        dataset = {"datasetId": "shelves", "projectKind": "vqa"}
        folder = make_attempt({"vi-dataset": dataset, "vi-model": model}, **named)
        fetched = {"folder": version, "dataset": "shelves", "version": "0" * 16}
        (folder / "dataset.json").write_text(json.dumps(fetched))
        return folder

    return prepare


def train_in(group: Path, folder: Path, *, measures: bool = True) -> int:
    """Train in the cgroup; return the exit code, or a signal as a negative number."""
    command = [sys.executable, "-c", TRAINER, str(group), str(folder), str(measures)]
    with open(folder / "log.txt", "wb") as log:
        return subprocess.run(command, stdout=log, stderr=log, timeout=600).returncode


def check_all_is_there(folder: Path, events_of: EventsOf, *, steps: list[int]) -> None:
    """Check that the attempt has evaluated and saved after each of these steps."""
    result = read_json(folder / "result.json") or {}
    assert (result["outcome"], result["reason"]) == ("Succeeded", "Completed")
    values = {event["step"]: event["values"] for event in events_of(folder, "evaluation")}
    assert list(values) == steps
    assert [event["metrics"] for event in events_of(folder, "checkpoint")] == [*values.values()]
    for saved, manifest in list_checkpoints(folder):
        assert is_proven(saved)
        assert manifest["metrics"] == values[manifest["step"]]


def test_memory_that_suffices_for_training_alone_loses_no_evaluation_and_no_step(
    small_memory: Path, prepare_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    """First the trainer measures how many samples fit. Then it does not, and the kernel kills it
    in its first evaluation; the next attempt has all that the first run has.
    """
    whole = prepare_attempt(run="whole")
    assert train_in(small_memory, whole) == 0
    check_all_is_there(whole, events_of, steps=[2, 4])
    limit = read_progress(whole / "checkpoints" / "epoch-1").evaluation_batch_limit
    assert limit is not None and limit < 64

    killed = prepare_attempt(run="killed")
    assert train_in(small_memory, killed, measures=False) == -signal.SIGKILL
    assert events_of(killed, "phase")[-1]["phase"] == "Evaluating"
    ((saved, manifest),) = list_checkpoints(killed)
    assert (manifest["step"], manifest["isUnevaluated"]) == (2, True)
    again = prepare_attempt(run="killed", attempt=2, resume=saved)
    assert train_in(small_memory, again) == 0
    check_all_is_there(again, events_of, steps=[2, 4])
    losses = [
        event["values"]["loss"] for each in (killed, again) for event in events_of(each, "step")
    ]
    assert losses == [event["values"]["loss"] for event in events_of(whole, "step")]
    one, two = (
        load_file(each / "checkpoints" / "epoch-1" / "model_full" / "model.safetensors")
        for each in (whole, again)
    )
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
