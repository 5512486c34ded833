"""One training loop over one case in a process of its own; ``train_speed.py`` starts it.

The process is a fork of one that has imported everything, as a trainer's is of the warm parent, so
that nobody waits for torch again each time. Forks do not share a thread: the parent computes with
one.

Ours and the bare loop run in ``.venv``, the others in ``.venv-peers``; both hold the same torch and
transformers. All begin with the same weights and see the same samples, batch size, rates and
optimizer. What a loop is asked for is the moment at which each of its steps was over, on the wall
and on the processor, so a step holds all that comes between two of them: drawing the batch,
forward, backward, clipping, the optimizer, and what the loop reports.

``bare`` and ``trainer-cached`` draw from samples that were encoded before the clock runs.
``trainer`` has decoded images and calls the processor on each batch; ``trl`` has rows of images and
messages and brings its own collator. What a loop does besides and can be switched off (checkpoints,
evaluation, gradient checkpointing) is off in all.
"""

import importlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

IGNORED = -100
# Of our trainer's plan, for the report.
PLANNED = ("threads", "precision", "microBatchSize", "packing", "featureCache")
MEASURED_SAMPLES = 32  # on which the models are compared in the end
# Steps; fetching each loss would be ours alone to pay for, and nobody asks a Trainer for it.
LOG_EVERY = 5
WEIGHT_DECAY, LONGEST_GRADIENT = 0.01, 1.0


class Clock:
    """When each step was over; index 0 is when training was asked for."""

    def __init__(self) -> None:
        self.wall_s, self.cpu_s = [time.perf_counter()], [time.process_time()]

    def tick(self) -> None:
        self.wall_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())


class Case:
    """A folder written by ``train_case.py``: model, images, and ``case.json`` about them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.document: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.rows: list[dict[str, Any]] = self.document["rows"]
        self.batch_size, self.steps = int(self.document["batchSize"]), int(self.document["steps"])

    def read_image(self, row: dict[str, Any]) -> Any:
        from PIL import Image

        with Image.open(self.folder / row["image"]) as image:
            return image.convert("RGB")

    def model(self, trained: Path | None = None) -> tuple[Any, Any]:
        """The model before the first step, or the one in ``trained``, with its processor."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        module = AutoModelForImageTextToText.from_pretrained(
            trained or self.folder / "model", dtype=torch.float32
        )
        if self.document["isFrozen"]:
            module.model.vision_model.requires_grad_(False)
        module.train()
        return module, AutoProcessor.from_pretrained(self.folder / "model", backend="pil")

    def texts(self, processor: Any, row: dict[str, Any]) -> tuple[str, str]:
        """The prompt up to where the model begins to speak, and the whole."""
        asked = [
            {"role": "system", "content": row["system"]},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": row["question"]}],
            },
        ]
        said = {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
        prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        return prompt, processor.apply_chat_template([*asked, said], tokenize=False)

    def encoded(self, processor: Any, count: int | None = None) -> list[dict[str, Any]]:
        """Encode samples once: tensors without a batch dimension, labels on the answer alone."""
        found = []
        for row in self.rows[:count]:
            image = self.read_image(row)
            prompt, whole = self.texts(processor, row)
            made = processor(images=[image], text=[whole], return_tensors="pt")
            asked = processor(images=[image], text=[prompt], return_tensors="pt")[
                "input_ids"
            ].shape[1]
            sample = {name: value[0] for name, value in made.items()}
            sample["labels"] = sample["input_ids"].clone()
            sample["labels"][:asked] = IGNORED
            found.append(sample)
        return found


def filled_up(samples: list[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Encoded samples as one batch, as wide as the longest of them."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    filling = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    return {
        name: pad_sequence(
            [sample[name] for sample in samples], batch_first=True, padding_value=filling[name]
        )
        if name in filling
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }


def ours(case: Case, clock: Clock) -> dict[str, Any]:
    """The trainer as a supervisor starts it; the moment of each step is that of its event."""
    from runyard.trainer import main as trainer

    attempt, stamps = Path(case.document["attempt"]), []

    def now_ms() -> int:
        stamps.append((time.perf_counter(), time.process_time()))
        return time.time_ns() // 1_000_000

    trainer._now_ms = now_ms
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    code = trainer.train_attempt(attempt)
    if code != 0:
        raise SystemExit(
            f"the attempt ended with code {code}: {(attempt / 'result.json').read_text()}"
        )
    events = [json.loads(line) for line in (attempt / "events.jsonl").read_text().splitlines()]
    assert len(events) == len(stamps)
    steps = [
        (event, stamp) for event, stamp in zip(events, stamps, strict=True) if event["ev"] == "step"
    ]
    clock.wall_s += [stamp[0] for _, stamp in steps]
    clock.cpu_s += [stamp[1] for _, stamp in steps]
    losses = [event["values"]["loss"] for event, _ in steps]
    plan = next(event["plan"] for event in events if event["ev"] == "plan")
    saved = next(event for event in events if event["ev"] == "checkpoint")
    saving = next(
        event for event in events if event["ev"] == "phase" and event["phase"] == "Saving"
    )
    return {
        "losses": means(losses),
        "batches": case.document["batches"],
        "plan": {name: plan[name]["value"] for name in PLANNED if name in plan},
        "save_s": (saved["t"] - saving["t"]) / 1000,
        "model": case.model(Path(saved["folder"]) / "model_full")[0],
    }


def means(losses: list[float]) -> list[float]:
    """Of ``LOG_EVERY`` steps each, as the Trainer logs them."""
    return [sum(losses[at : at + LOG_EVERY]) / LOG_EVERY for at in range(0, len(losses), LOG_EVERY)]


def bare(case: Case, clock: Clock, order: list[list[int]] | None = None) -> dict[str, Any]:
    """Plain torch over encoded samples, in random order or in the order that another loop had."""
    import torch

    module, processor = case.model()
    samples, pad_id = case.encoded(processor), processor.tokenizer.pad_token_id
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    rate = case.document["learningRate"]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    batches = order or list(random_batches(len(samples), case.batch_size, case.steps))
    kept, losses = torch.zeros(()), []
    for step, indices in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / case.steps)
        batch = filled_up([samples[index] for index in indices], pad_id)
        loss = module(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        kept += loss.detach()
        if (step + 1) % LOG_EVERY == 0:
            losses.append(float(kept) / LOG_EVERY)
            kept.zero_()
        clock.tick()
    return {"losses": losses, "batches": batches, "model": module}


def random_batches(count: int, batch_size: int, steps: int) -> Iterator[list[int]]:
    numbers, order = random.Random(7), list(range(count))  # noqa: S311 - no secrets
    for step in range(steps):
        start = step * batch_size % count
        if start == 0:
            numbers.shuffle(order)
        yield order[start : start + batch_size]


def trainer_cached(case: Case, clock: Clock) -> dict[str, Any]:
    """Transformers' Trainer over encoded samples in memory."""
    module, processor = case.model()
    samples, pad_id = case.encoded(processor), processor.tokenizer.pad_token_id
    items = [{"at": at, "sample": sample} for at, sample in enumerate(samples)]
    return _trained(
        case,
        clock,
        module,
        items,
        lambda chosen: filled_up([item["sample"] for item in chosen], pad_id),
    )


def trainer(case: Case, clock: Clock) -> dict[str, Any]:
    """Transformers' Trainer over decoded images; its collator calls the processor per batch."""
    import torch

    module, processor = case.model()
    begins = processor.tokenizer.convert_tokens_to_ids("<|assistant|>")

    def collate(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor(
            images=[[item["image"]] for item in chosen],
            text=[item["text"] for item in chosen],
            padding=True,
            return_tensors="pt",
        )
        labels = batch["input_ids"].clone()
        answer = torch.cumsum(labels == begins, 1).roll(1, 1)
        answer[:, 0] = 0
        labels[(answer == 0) | (batch["attention_mask"] == 0)] = IGNORED
        return {**batch, "labels": labels}

    items = [
        {"at": at, "image": case.read_image(row), "text": case.texts(processor, row)[1]}
        for at, row in enumerate(case.rows)
    ]
    return _trained(case, clock, module, items, collate)


def _trained(
    case: Case,
    clock: Clock,
    module: Any,
    items: list[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    batches: list[list[int]] = []

    def noted(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        batches.append([item["at"] for item in chosen])
        return collate(chosen)

    with tempfile.TemporaryDirectory() as folder:
        loop = Trainer(
            model=module,
            args=TrainingArguments(output_dir=folder, **_arguments(case)),
            train_dataset=items,
            data_collator=noted,
            callbacks=[_ticker(clock)],
        )
        loop.train()
    return {"losses": _logged(loop), "batches": batches, "model": module}


def trl(case: Case, clock: Clock) -> dict[str, Any]:
    """TRL's SFTTrainer over images and messages: its own collator, completion-only loss."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    module, processor = case.model()
    rows = [
        {
            "images": [str(case.folder / row["image"])],
            "prompt": [
                {"role": "system", "content": row["system"]},
                {"role": "user", "content": row["question"]},
            ],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in case.rows
    ]
    data = datasets.Dataset.from_list(rows).cast_column(
        "images", datasets.Sequence(datasets.Image())
    )
    # Which rows a batch held is known by their answers' length alone, so tokens are counted in what
    # the collator made.
    tokens: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        loop = SFTTrainer(
            model=module,
            args=SFTConfig(
                output_dir=folder,
                max_length=None,
                bf16=False,
                gradient_checkpointing=False,
                **_arguments(case),
            ),
            train_dataset=data,
            processing_class=processor,
            callbacks=[_ticker(clock)],
        )
        collate = loop.data_collator

        def noted(chosen: list[dict[str, Any]]) -> Any:
            batch = collate(chosen)
            tokens.append(int(batch["attention_mask"].sum()))
            return batch

        loop.data_collator = noted
        loop.train()
    return {"losses": _logged(loop), "tokens": tokens, "model": module}


def _arguments(case: Case) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": case.batch_size,
        "max_steps": case.steps,
        "learning_rate": case.document["learningRate"],
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": LONGEST_GRADIENT,
        "logging_steps": LOG_EVERY,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 7,
    }


def _ticker(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Ticker(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    return Ticker()


def _logged(loop: Any) -> list[float]:
    return [float(line["loss"]) for line in loop.state.log_history if "loss" in line]


LOOPS: dict[str, Callable[[Case, Clock], dict[str, Any]]] = {
    "ours": ours,
    "bare": bare,
    "trainer-cached": trainer_cached,
    "trainer": trainer,
    "trl": trl,
}


def mean_loss(case: Case, module: Any) -> float:
    """Over all answer tokens of some samples, whatever order they were learned in."""
    import torch

    processor = case.model()[1]
    samples, pad_id = case.encoded(processor, MEASURED_SAMPLES), processor.tokenizer.pad_token_id
    total, tokens = 0.0, 0
    module.eval()
    with torch.no_grad():
        for start in range(0, len(samples), case.batch_size):
            batch = filled_up(samples[start : start + case.batch_size], pad_id)
            label_count = int((batch["labels"] != IGNORED).sum())
            total += float(module(**batch, use_cache=False).loss) * label_count
            tokens += label_count
    return total / tokens


@dataclass(frozen=True, kw_only=True)
class Task:
    """Run one loop over a case and write its report to ``output``.

    ``order`` is the report of another loop.
    """

    loop: str
    case: str
    output: str
    threads: int
    order: str | None = None
    is_measured: bool = False  # whether the model is measured in the end


def run(task: Task) -> None:
    """Run a loop in this process and write what it did as JSON."""
    import torch
    import transformers

    torch.set_num_threads(task.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    case, clock = Case(Path(task.case)), Clock()
    if task.order is None:
        found = LOOPS[task.loop](case, clock)
    else:
        found = bare(case, clock, json.loads(Path(task.order).read_text())["batches"])
    if len(clock.wall_s) != case.steps + 1:
        raise SystemExit(f"{task.loop} took {len(clock.wall_s) - 1} steps and not {case.steps}")
    module = found.pop("model")
    if task.is_measured:
        found["endLoss"] = mean_loss(case, module)
    if "batches" in found:
        found["batches"] = found["batches"][: case.steps]  # a Trainer draws one ahead
        found["tokens"] = [
            sum(case.document["tokens"][index] for index in batch) for batch in found["batches"]
        ]
    found["tokens"] = found["tokens"][: case.steps]
    Path(task.output).write_text(json.dumps(found | {"wall_s": clock.wall_s, "cpu_s": clock.cpu_s}))


def run_in_fork(task: Task) -> None:
    """Raise RuntimeError with the process's last output if it ends with a code other than 0."""
    process = get_context("fork").Process(target=_run_with_log, args=(task,))
    process.start()
    process.join()
    if process.exitcode != 0:
        said = Path(f"{task.output}.log").read_text()[-3000:]
        raise RuntimeError(f"{task.loop} ended with {process.exitcode}:\n{said}")


def _run_with_log(task: Task) -> None:
    log = os.open(f"{task.output}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    run(task)


def preload(*modules: str) -> None:
    """Import what the loops need; starts no thread that a fork would lack."""
    import torch

    for name in ("transformers", "transformers.models.auto.modeling_auto", *modules):
        importlib.import_module(name)
    torch.set_num_threads(1)


def main() -> None:
    """Read tasks as lines of JSON; answer each with an empty line, or with what went wrong."""
    preload("datasets", "transformers.trainer", "trl.trainer.sft_trainer")
    for line in sys.stdin:
        try:
            run_in_fork(Task(**json.loads(line)))
            print(json.dumps(""), flush=True)
        except RuntimeError as error:
            print(json.dumps(str(error)), flush=True)


if __name__ == "__main__":
    main()
