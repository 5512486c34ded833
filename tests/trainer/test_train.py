"""Complete attempts of a few steps: their files, and how an attempt ends."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import runyard.trainer.checkpoints.async_checkpoint as saving_module
import runyard.trainer.checkpoints.checkpoint as checkpoint_module
import runyard.trainer.train as train_module
from runyard.rundir import EVENTS, read_json, sha256_of
from runyard.trainer.answers import METRICS
from runyard.trainer.checkpoints.checkpoint import is_proven
from runyard.trainer.main import train_attempt

EventsOf = Callable[[Path, str], list[dict[str, Any]]]


def short(*, steps: int = 6, samples: int = 64, **model: Any) -> dict[str, dict[str, Any]]:
    """Return blocks of a flow with two steps per epoch."""
    numbers = {"maxSteps": steps} | model.pop("hyperparameters", {})
    model = {"validation": {"maxSamples": 8, "previews": 2}, "hyperparameters": numbers} | model
    return {"vi-dataset": {"maxSamples": samples}, "vi-model": model}


@pytest.fixture(scope="module")
def finished(write_attempt: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs."""
    folder = write_attempt(tmp_path_factory.mktemp("finished"), short())
    assert train_attempt(folder) == 0
    return folder


def test_every_step_evaluation_and_checkpoint_has_an_event(
    finished: Path, events_of: EventsOf
) -> None:
    steps = events_of(finished, "step")
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event["epoch"] for event in steps] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert set(steps[0]["values"]) == {
        "loss",
        "learningRate",
        "gradNorm",
        "samplesPerSecond",
        "dataWaitShare",
    }
    assert steps[-1]["values"]["loss"] < steps[0]["values"]["loss"]
    assert steps[-1]["secondsLeft"] == 0
    evaluations = events_of(finished, "evaluation")
    assert [event["metricName"] for event in evaluations] == ["exactMatch"] * 3
    assert set(evaluations[0]["values"]) == {
        f"validation/{name}" for name in ("loss", *METRICS["vqa"])
    }
    assert len(evaluations[0]["previews"]) == 2
    assert [event["checkpoint"] for event in events_of(finished, "checkpoint")] == [
        "epoch-1",
        "epoch-2",
        "epoch-3",
    ]
    lines = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["ev"] for line in lines} <= set(EVENTS)
    phases = [line["phase"] for line in lines if line["ev"] == "phase"]
    assert phases[:4] == ["Preparing", "Training", "Saving", "Evaluating"]


def test_the_plan_gives_every_number_a_reason(finished: Path, events_of: EventsOf) -> None:
    (plan,) = [event["plan"] for event in events_of(finished, "plan")]
    assert all(set(item) == {"value", "reason"} and item["reason"] for item in plan.values())
    assert plan["totalSteps"] == {"value": 6, "reason": "maxSteps"}
    assert (plan["batchSize"]["value"], plan["precision"]["value"], plan["threads"]["value"]) == (
        32,
        "float32",
        1,
    )
    assert plan["imageBackend"]["value"] == "pil"


def test_plan_and_checkpoint_contain_what_a_reproduction_needs(
    finished: Path, events_of: EventsOf
) -> None:
    (plan,) = [event["plan"] for event in events_of(finished, "plan")]
    values = {name: item["value"] for name, item in plan.items()}
    assert values["versions"]["torch"] == torch.__version__
    assert {
        "python",
        "runyard",
        "transformers",
        "peft",
        "tokenizers",
        "safetensors",
        "accelerate",
    } < set(values["versions"])
    assert {"numpy", "pillow"} < set(values["versions"])
    assert values["hardware"]["cores"] >= 1 and values["hardware"]["memoryGiB"] > 0
    assert all(
        values["hardware"][name] for name in ("processor", "instructions", "architecture", "system")
    )
    assert isinstance(values["hardware"]["accelerators"], list)
    assert values["revision"] is None or len(values["revision"]["commit"]) == 40
    assert (values["dataset"], len(values["datasetVersion"]), values["seed"]) == ("digits", 16, 7)
    run = read_json(finished / "checkpoints" / "epoch-3" / "model_full" / "run.json")
    assert run is not None
    assert run["status"]["plan"] == plan


def test_the_result_names_outcome_checkpoint_and_metrics(finished: Path) -> None:
    result = read_json(finished / "result.json")
    assert result is not None
    assert (result["outcome"], result["reason"], result["checkpoint"]) == (
        "Succeeded",
        "Completed",
        "epoch-3",
    )
    assert "validation/exactMatch" in result["metrics"]


def test_a_checkpoint_is_listed_file_by_file(finished: Path) -> None:
    folder = finished / "checkpoints" / "epoch-3"
    manifest = read_json(folder / "manifest.json")
    assert manifest is not None
    assert (manifest["checkpoint"], manifest["step"], manifest["epoch"]) == ("epoch-3", 6, 3)
    listed = {item["path"]: (item["sizeBytes"], item["sha256"]) for item in manifest["files"]}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {
        "manifest.json"
    }
    assert set(listed) == there
    assert all(
        listed[path] == ((folder / path).stat().st_size, sha256_of(folder / path)) for path in there
    )
    expected = (
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "processor_config.json",
    )
    assert {
        f"model_full/{name}" for name in (*expected, "run.json", "chat_template.jinja")
    } <= there
    assert not [
        path for path in there if not path.endswith((".json", ".jsonl", ".safetensors", ".jinja"))
    ]
    assert [path for path in there if "/" not in path] == ["predictions.jsonl"]


def test_run_json_satisfies_the_published_clients_rules(finished: Path) -> None:
    run = read_json(finished / "checkpoints" / "epoch-3" / "model_full" / "run.json")
    assert run is not None
    flow = run["spec"]["flow"]
    assert {"name", "schema", "tolerations", "settings", "blocks"} <= set(flow)
    assert all({"block", "settings", "style"} <= set(block) for block in flow["blocks"])

    def settings(word: str) -> dict[str, Any]:
        return next(block["settings"] for block in flow["blocks"] if word in block["block"])

    model = settings("model")
    assert model["architecture"]["name"] == "qwen25vl"
    assert (model["architecture"]["family"], model["architecture"]["size"]) == ("idefics3", "tiny")
    assert (model["quantization"]["enabled"], model["compute"]["precisionType"]) == (
        False,
        "float32",
    )
    evaluation = model["evaluation"]
    kinds = {
        "temperature": float,
        "top_k": int,
        "top_p": float,
        "repetition_penalty": float,
        "max_new_tokens": int,
    }
    assert all(type(evaluation[name]) is kind for name, kind in kinds.items())
    assert type(evaluation["eos_token_id"]) is int
    assert type(evaluation["pad_token_id"]) is int
    assert settings("dataset")["projectKind"] == "vqa"
    assert '{"vqa"' in settings("system-prompt")["systemPrompt"]
    assert run["status"]["plan"]["threads"]["value"] == 1


FRESH = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
torch.set_num_threads(1)
full = Path(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(full).eval()
processor = AutoProcessor.from_pretrained(full)
image = Image.new("RGB", (32, 32), (40, 90, 160))
flow = json.loads((full / "run.json").read_text())["spec"]["flow"]
block = next(block for block in flow["blocks"] if "system-prompt" in block["block"])
prompt = block["settings"]["systemPrompt"]
user = [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]
system = [{"type": "text", "text": prompt}]
messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[image], text=[text], return_tensors="pt")
made = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1]:]
print(json.dumps({
    "class": type(model).__name__,
    "said": processor.batch_decode(made, skip_special_tokens=True)[0],
    "runyard": "runyard" in sys.modules,
}))
"""


def test_plain_transformers_in_a_new_process_answers_like_the_predictor(finished: Path) -> None:
    from PIL import Image

    from runyard.trainer.export.predict import Predictor

    full = finished / "checkpoints" / "epoch-3" / "model_full"
    command = [sys.executable, "-c", FRESH, str(full)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    image = Image.new("RGB", (32, 32), (40, 90, 160))
    predicted = Predictor(full.parent, threads=1).predict(
        image, "Which digit is this?", max_new_tokens=8
    )
    assert answer == {
        "class": "Idefics3ForConditionalGeneration",
        "said": predicted.raw,
        "runyard": False,
    }


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def final_tensors(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    root = folder / "checkpoints" / checkpoint
    weights: dict[str, torch.Tensor] = load_file(root / "model_full" / "model.safetensors")
    weights |= load_file(root / "training_state" / "state.safetensors")
    return weights


def train_until_the_fifth_batch(folder: Path) -> int:
    """Train until a kill in the fifth step; called in a separate process."""
    take_step, steps = train_module.optimizer_step, []

    def count(*arguments: Any) -> Any:
        steps.append(1)
        found = take_step(*arguments)
        if len(steps) == 5:
            while not (
                folder / "checkpoints" / "epoch-1" / "manifest.json"
            ).exists():  # a thread writes it
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    train_module.optimizer_step = count  # type: ignore[assignment]
    return train_attempt(folder)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make_attempt: Callable[..., Path], fork: Callable[..., Any]
) -> None:
    """SIGKILL in the second epoch, between two checkpoints.

    The next attempt resumes from the first.
    """
    blocks = short(steps=7, samples=90)
    whole = make_attempt(blocks, run="whole")
    assert train_attempt(whole) == 0

    killed = make_attempt(blocks, run="cut")
    assert fork(lambda: train_until_the_fifth_batch(killed)).wait(60) == -signal.SIGKILL
    assert not (killed / "result.json").exists()
    resume = killed / "checkpoints" / "epoch-1"
    assert is_proven(resume)
    again = make_attempt(blocks, run="cut", attempt=2, resume=resume)
    assert train_attempt(again) == 0

    one, two = final_tensors(whole, "step-7"), final_tensors(again, "step-7")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize(
    "optimizer",
    ["muon", "adafactor", "sgd", pytest.param("adamw8bit", marks=needs_bitsandbytes)],
)
def test_every_optimizer_resumes_bit_for_bit(
    optimizer: str, make_attempt: Callable[..., Path]
) -> None:
    blocks = short(
        steps=3,
        samples=60,
        hyperparameters={"optimizer": {"name": optimizer}, "learningRate": 0.002},
    )
    whole = make_attempt(blocks, run="whole")
    assert train_attempt(whole) == 0
    again = make_attempt(blocks, run="again", resume=whole / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    one, two = final_tensors(whole, "step-3"), final_tensors(again, "step-3")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_an_adapter_resumes_bit_for_bit_with_dropout(
    make_attempt: Callable[..., Path], miniature: Any
) -> None:
    """Dropout draws random numbers, so this holds only if the random state is in the checkpoint."""
    training = {"mode": "lora", "lora": {"dropout": 0.3}}
    model = {"architecture": {"weights": str(miniature("llava"))}, "training": training}
    model["compute"] = {"precisionType": "float32"}
    full = short(steps=4, samples=8, **model, hyperparameters={"batchSize": 4})
    whole = make_attempt(full, run="whole")
    assert train_attempt(whole) == 0
    again = make_attempt(full, run="again", resume=whole / "checkpoints" / "epoch-1")
    assert train_attempt(again) == 0
    one, two = (
        load_file(f / "checkpoints/epoch-2/model_adapter/adapter_model.safetensors")
        for f in (whole, again)
    )
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    base = [
        load_file(f / "checkpoints/epoch-2/model_full/model.safetensors") for f in (whole, again)
    ]
    assert all(torch.equal(base[0][name], base[1][name]) for name in base[0])


def test_a_damaged_checkpoint_is_not_resumed_from(
    finished: Path, make_attempt: Callable[..., Path], events_of: EventsOf, tmp_path: Path
) -> None:
    damaged = tmp_path / "epoch-2"
    shutil.copytree(finished / "checkpoints" / "epoch-2", damaged)
    with open(damaged / "model_full" / "model.safetensors", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff\xff")
    folder = make_attempt(short(steps=1), run="next", resume=damaged)
    assert train_attempt(folder) == 0
    assert "epoch-2 is damaged" in events_of(folder, "warning")[0]["message"]
    assert events_of(folder, "step")[0]["step"] == 1


def test_stop_json_saves_and_ends_with_75(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_attempt(short())
    take_step = train_module.optimizer_step

    def step_and_stop(*arguments: Any) -> float:
        (folder / "stop.json").write_text("{}")
        return take_step(*arguments)

    monkeypatch.setattr(train_module, "optimizer_step", step_and_stop)
    assert train_attempt(folder) == 75
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["checkpoint"]) == ("Stopped", "step-1")
    assert is_proven(folder / "checkpoints" / "step-1")


def test_sigterm_saves_and_ends_with_75(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    folder = make_attempt(short())
    take_step = train_module.optimizer_step

    def step_and_signal(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return take_step(*arguments)

    monkeypatch.setattr(train_module, "optimizer_step", step_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert train_attempt(folder) == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    assert is_proven(folder / "checkpoints" / "step-1")


def test_a_stop_before_the_first_step_saves_nothing(make_attempt: Callable[..., Path]) -> None:
    folder = make_attempt(short())
    (folder / "stop.json").write_text("{}")
    assert train_attempt(folder) == 75
    assert not (folder / "checkpoints").exists()


def test_only_the_newest_and_the_best_are_kept(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    folder = make_attempt(short(steps=8, checkpoint={"keep": 1, "metric": "loss", "mode": "max"}))
    assert train_attempt(folder) == 0
    best = [event["checkpoint"] for event in events_of(folder, "checkpoint") if event["isBest"]][-1]
    assert best != "epoch-4"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {best, "epoch-4"}


def test_saving_and_evaluating_have_independent_intervals(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    pace: dict[str, Any] = {
        "checkpoint": {"every": {"steps": 4}},
        "validation": {"every": {"steps": 3}, "maxSamples": 4},
    }
    folder = make_attempt(short(steps=5, **pace))
    assert train_attempt(folder) == 0
    assert [event["step"] for event in events_of(folder, "evaluation")] == [3, 5]
    assert [event["checkpoint"] for event in events_of(folder, "checkpoint")] == [
        "epoch-2",
        "step-5",
    ]


def test_every_token_that_a_flow_names_reaches_the_model(make_attempt: Callable[..., Path]) -> None:
    expected = {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 7}
    folder = make_attempt(short(steps=1, samples=16, evaluation=expected))
    assert train_attempt(folder) == 0
    model = next((folder / "checkpoints").iterdir()) / "model_full"
    own = read_json(model / "generation_config.json") or {}
    assert {name: own[name] for name in expected} == expected
    run = read_json(model / "run.json") or {}
    blocks = {block["block"]: block["settings"] for block in run["spec"]["flow"]["blocks"]}
    assert {name: blocks["vi-model"]["evaluation"][name] for name in expected} == expected


def test_a_run_at_its_time_limit_ends_with_that_reason(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    never = {"every": {"steps": 10_000}, "maxSamples": 4}
    rare = {
        "checkpoint": {"every": {"steps": 10_000}},
        "validation": never,
        "hyperparameters": {"epochs": 10_000},
    }
    folder = make_attempt(
        short(steps=10_000, samples=32, **rare), settings={"timeLimitMinutes": 0.02}
    )
    assert train_attempt(folder) == 0
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["reason"]) == ("Succeeded", "TimeLimit")
    steps = events_of(folder, "step")
    message = f"timeLimitMinutes 0.02 reached after step {len(steps)} of 10000"
    assert result["message"].startswith(message)
    assert result["checkpoint"] == events_of(folder, "checkpoint")[-1]["checkpoint"]
    left = [step["secondsLeft"] for step in steps]
    assert all(0 <= seconds <= 1.2 for seconds in left) and left[-1] == 0
    assert left == sorted(left, reverse=True)


def test_a_run_whose_plan_ends_at_the_limit_is_completed(make_attempt: Callable[..., Path]) -> None:
    folder = make_attempt(short(steps=1), settings={"timeLimitMinutes": 1e-6})
    assert train_attempt(folder) == 0
    result = read_json(folder / "result.json")
    assert result is not None and result["reason"] == "Completed"


def test_a_run_without_improvement_stops_early(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    validation = {"maxSamples": 4, "earlyStopping": {"patience": 2, "minDelta": 10.0}}
    folder = make_attempt(short(steps=100, samples=32, validation=validation))
    assert train_attempt(folder) == 0
    result = read_json(folder / "result.json")
    assert result is not None
    assert (result["outcome"], result["reason"]) == ("Succeeded", "EarlyStopped")
    assert len(events_of(folder, "evaluation")) == 3


def test_without_held_out_data_the_newest_checkpoint_is_the_best(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    blocks = short(steps=2)
    blocks["vi-dataset"]["validationFraction"] = 0
    folder = make_attempt(blocks)
    assert train_attempt(folder) == 0
    assert not events_of(folder, "evaluation")
    assert [event["isBest"] for event in events_of(folder, "checkpoint")] == [True]


def test_micro_batches_add_up_to_the_same_step(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    losses = []
    for size in (32, 8):
        folder = make_attempt(
            short(steps=2, hyperparameters={"microBatchSize": size}), run=f"micro-{size}"
        )
        assert train_attempt(folder) == 0
        losses.append([event["values"]["loss"] for event in events_of(folder, "step")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.train
def test_grounding_is_trained_and_scored(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    blocks = short(steps=2, samples=40)
    blocks["vi-dataset"]["datasetId"] = "digits-grounding"
    folder = make_attempt(blocks)
    assert train_attempt(folder) == 0
    (evaluation,) = events_of(folder, "evaluation")
    assert evaluation["metricName"] == "iou"
    assert set(evaluation["values"]) == {
        f"validation/{name}" for name in ("loss", *METRICS["phrase-grounding"])
    }


@pytest.mark.parametrize(("expected", "metric"), [("auto", "iou"), ("exactMatch", "exactMatch")])
def test_samples_of_two_tasks_are_trained_and_scored_by_their_own_task(
    expected: str,
    metric: str,
    make_attempt: Callable[..., Path],
    events_of: EventsOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runyard.trainer.data.datasets.BOTH_CANVASES", 60)
    checkpoint = {"metric": expected}
    blocks = short(
        steps=2, samples=40, validation={"maxSamples": 8, "previews": 8}, checkpoint=checkpoint
    )
    blocks["vi-dataset"]["datasetId"] = "digits-both"
    folder = make_attempt(blocks)
    assert train_attempt(folder) == 0
    (evaluation,) = events_of(folder, "evaluation")
    assert evaluation["metricName"] == metric
    measured = {"loss", *METRICS["vqa"], *METRICS["phrase-grounding"]}
    assert set(evaluation["values"]) == {f"validation/{name}" for name in measured}
    lines = (folder / "checkpoints" / "epoch-1" / "predictions.jsonl").read_text().splitlines()
    for preview, line in zip(evaluation["previews"], map(json.loads, lines), strict=True):
        asks_for_boxes = "truthBoxes" in preview
        assert preview["truth"].startswith('{"phrase_grounding":' if asks_for_boxes else '{"vqa":')
        assert set(line["scores"]) < set(METRICS["phrase-grounding" if asks_for_boxes else "vqa"])
    assert {"truthBoxes" in preview for preview in evaluation["previews"]} == {True, False}


def test_answers_may_be_sampled_and_end_at_a_stop_string(
    make_attempt: Callable[..., Path], events_of: EventsOf
) -> None:
    """The same seed samples the same answers, and does not change the loop's random numbers."""
    drawn = []
    for run in ("one", "two"):
        evaluation = {"do_sample": True, "temperature": 2.0, "seed": 3, "stop_strings": ["}"]}
        folder = make_attempt(short(steps=2, evaluation=evaluation), run=run)
        assert train_attempt(folder) == 0
        drawn.append(
            [preview["answer"] for preview in events_of(folder, "evaluation")[0]["previews"]]
        )
    assert drawn[0] == drawn[1]


def too_little_memory(monkeypatch: pytest.MonkeyPatch, *, fits: int) -> list[int]:
    """Let micro-batches above ``fits`` run out of memory; return the list of sizes tried."""
    accumulate, tried = train_module.accumulate_gradients, []

    def accumulate_if_it_fits(
        state: Any, indices: list[int], epoch: int, micro_batch_size: int
    ) -> float:
        tried.append(micro_batch_size)
        if micro_batch_size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return accumulate(state, indices, epoch, micro_batch_size)

    monkeypatch.setattr(train_module, "accumulate_gradients", accumulate_if_it_fits)
    return tried


def test_out_of_memory_shrinks_the_micro_batch_and_a_resumed_attempt_keeps_it(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = too_little_memory(monkeypatch, fits=8)
    first = make_attempt(short(steps=1, onOutOfMemory="shrink"))
    assert train_attempt(first) == 0
    assert tried == [32, 16, 8]
    assert [event["plan"]["microBatchSize"]["value"] for event in events_of(first, "plan")] == [
        32,
        16,
        8,
    ]
    message = (
        "out of memory with microBatchSize 16 at step 1; continuing with 8 at the same batch size"
    )
    assert events_of(first, "warning")[-1]["message"] == message
    saved = first / "checkpoints" / "step-1"
    run = read_json(saved / "model_full" / "run.json")
    assert run is not None
    assert (
        run["status"]["plan"]["microBatchSize"]["value"],
        run["status"]["plan"]["batchSize"]["value"],
    ) == (8, 32)
    tried.clear()
    again = make_attempt(short(steps=2, onOutOfMemory="shrink"), attempt=2, resume=saved)
    assert train_attempt(again) == 0
    assert tried == [8]
    assert events_of(again, "plan")[0]["plan"]["accumulation"]["value"] == 4


def test_an_attempt_obeys_the_micro_batch_limit_that_the_server_set_after_a_kill(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = too_little_memory(monkeypatch, fits=32)
    folder = make_attempt(short(steps=1, onOutOfMemory="shrink"))
    config = json.loads((folder / "run.json").read_text())
    config["run"]["status"] = {"microBatchLimit": 4}
    (folder / "run.json").write_text(json.dumps(config))
    assert train_attempt(folder) == 0
    assert tried == [4]
    state = read_json(folder / "checkpoints" / "step-1" / "training_state" / "state.json")
    assert state is not None
    assert state["progress"]["microBatchLimit"] == 4


def test_out_of_memory_ends_the_run_if_it_may_not_or_cannot_shrink(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    too_little_memory(monkeypatch, fits=0)
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("fail", {"onOutOfMemory": "fail"}, 32),
        ("shrink", {}, 1),
    ]
    for run, blocks, size in cases:
        folder = make_attempt(short(steps=1, **blocks), run=run)
        assert train_attempt(folder) == 64
        reason, message = failure(folder)
        assert reason == "OutOfMemory"
        assert f"while training with microBatchSize {size}; try: a smaller hyperparam" in message


@pytest.mark.parametrize(
    ("part", "doing"),
    [
        ("prepare", "preparing data and model"),
        ("optimizer_step", "taking a step"),
        ("save_checkpoint", "saving"),
    ],
)
def test_out_of_memory_names_the_activity(
    part: str, doing: str, make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(train_module, part, no_memory)
    folder = make_attempt(short(steps=1))
    assert train_attempt(folder) == 64
    reason, message = failure(folder)
    assert reason == "OutOfMemory"
    assert message.startswith(f"out of memory while {doing}; try: ")
    assert message.endswith("Unable to allocate 9 GiB")


def failure(folder: Path) -> tuple[str, str]:
    result = read_json(folder / "result.json")
    assert result is not None
    assert result["outcome"] == "Failed"
    return result["reason"], result["message"]


@pytest.mark.parametrize(
    ("blocks", "says"),
    [
        (
            {"vi-dataset": {"datasetId": "shelves", "projectKind": "vqa"}},
            "unknown dataset 'shelves'",
        ),
        ({"vi-dataset": {"projectKind": "phrase-grounding"}}, "is of kind vqa"),
        (
            {"vi-model": {"architecture": {"weights": "/no/such/folder"}}},
            "not in a folder of this machine's setting model_folders",
        ),
        ({"vi-model": {"architecture": {"name": "qwen3vl"}}}, "not on this machine"),
        ({"vi-model": {"images": {"maxPixels": 1000}}}, "images of one size only"),
        ({"vi-dataset": {"datasetVersion": "v1"}}, "has no versions"),
        ({"vi-model": {"compute": {"precisionType": "float16"}}}, "needs an accelerator"),
        (
            {"vi-model": {"training": {"freeze": ["vision", "projector", "language"]}}},
            "nothing to train",
        ),
        ({"vi-model": {"checkpoint": {"metric": "iou"}}}, "is not measured for vqa"),
    ],
)
def test_a_flow_that_cannot_run_is_refused_with_the_reason(
    blocks: Any, says: str, make_attempt: Callable[..., Path]
) -> None:
    if torch.accelerator.is_available() and "accelerator" in says:
        pytest.skip("this machine supports the flow")
    blocks.setdefault("vi-dataset", {})["maxSamples"] = 40
    folder = make_attempt(blocks)
    assert train_attempt(folder) == 64
    reason, message = failure(folder)
    assert reason == "InvalidFlow"
    assert says in message


def test_a_folder_without_run_json_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "attempts" / "1"
    folder.mkdir(parents=True)
    assert train_attempt(folder) == 64
    assert "run.json is missing" in failure(folder)[1]


def test_a_bug_leaves_a_result_and_a_traceback(
    make_attempt: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any) -> float:
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setattr(train_module, "optimizer_step", broken)
    folder = make_attempt(short())
    assert train_attempt(folder) == 1
    assert failure(folder) == ("TrainerError", "ZeroDivisionError: one over nothing")
    assert "Traceback" in capsys.readouterr().err


def test_a_disk_error_leaves_no_result_so_that_another_attempt_may_follow(
    make_attempt: Callable[..., Path], events_of: EventsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint_module, "_fsync_file", fails)
    folder = make_attempt(short(steps=1))
    assert train_attempt(folder) == 1
    assert len(events_of(folder, "warning")) == saving_module.MAX_SAVE_ATTEMPTS - 1
    assert not (folder / "result.json").exists()
    assert list((folder / "checkpoints").iterdir()) == []


def test_two_trainers_of_one_run_never_run_concurrently(
    make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.trainer.main.LOCK_WAIT_S", 0.0)
    folder = make_attempt(short(steps=1))
    # Close the descriptor on exec only: a lock in this process is another open file, as another
    # process's would be.
    held = subprocess.Popen(
        [sys.executable, "-c",
         f"import fcntl; f = open({str(folder.parent.parent / 'run.lock')!r}, 'w');fcntl.flock(f, "
         "fcntl.LOCK_EX); print('held', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with held:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        assert train_attempt(folder) == 1
        assert not (folder / "result.json").exists()
        held.communicate("\n")
    assert train_attempt(folder) == 0


def test_a_lock_inherited_as_a_descriptor_is_used(make_attempt: Callable[..., Path]) -> None:
    folder = make_attempt(short(steps=1))
    descriptor = os.open(folder.parent.parent / "run.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert train_attempt(folder) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
