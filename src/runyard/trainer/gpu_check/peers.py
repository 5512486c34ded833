"""The other training loops of the comparison: transformers' Trainer, and TRL's SFTTrainer."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from runyard.trainer.gpu_check.devices import choose_device
from runyard.trainer.gpu_check.model import QUESTION, SYSTEM_PROMPT
from runyard.trainer.gpu_check.runs import LARGE_MODEL, CheckContext
from runyard.trainer.gpu_check.timing import StepTimer

IGNORED = -100


def train_with_transformers(context: CheckContext, *, recomputes: bool) -> tuple[StepTimer, float]:
    """Train with a collator that calls the processor for every batch; return the mean loss too."""
    from transformers import Trainer, TrainingArguments

    model = load_adapted(context)
    processor = model.processor
    begins = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    role_tokens = len(processor.tokenizer("assistant\n", add_special_tokens=False)["input_ids"])

    def collate(chosen: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor(
            images=[[item["image"]] for item in chosen],
            text=[item["text"] for item in chosen],
            padding=True,
            return_tensors="pt",
        )
        labels = batch["input_ids"].clone()
        for row in labels:
            answer = int((row == begins).nonzero()[-1]) + 1 + role_tokens
            row[:answer] = IGNORED
        labels[batch["attention_mask"] == 0] = IGNORED
        tokens.append(int(batch["attention_mask"].sum()))
        return {**batch, "labels": labels}

    tokens: list[int] = []
    items = [
        {"image": image, "text": make_text(processor, answer)}
        for image, answer in read_samples(context)
    ]
    timer = StepTimer(choose_device(context), context.is_dry)
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        arguments = TrainingArguments(**make_arguments(context, folder, timer.count, recomputes))
        loop = Trainer(
            model=model.module,
            args=arguments,
            train_dataset=items,
            data_collator=collate,
            callbacks=[make_callback(timer, tokens)],
        )
        loss = float(loop.train().training_loss)
    return timer, loss


def train_with_trl(context: CheckContext, *, recomputes: bool) -> tuple[StepTimer, float]:
    """Train with TRL's own collator, which computes the loss on completions."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    model = load_adapted(context)
    tokens: list[int] = []
    timer = StepTimer(choose_device(context), context.is_dry)
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        rows = [
            {
                "images": [save_image(image, Path(folder) / f"{number}.png")],
                "prompt": [
                    {"role": "system", "content": SYSTEM_PROMPT},
                    {"role": "user", "content": QUESTION},
                ],
                "completion": [{"role": "assistant", "content": answer}],
            }
            for number, (image, answer) in enumerate(read_samples(context))
        ]
        data = datasets.Dataset.from_list(rows)
        loop = SFTTrainer(
            model=model.module,
            args=SFTConfig(
                max_length=None, **make_arguments(context, folder, timer.count, recomputes)
            ),
            train_dataset=data.cast_column("images", datasets.Sequence(datasets.Image())),
            processing_class=model.processor,
            callbacks=[make_callback(timer, tokens)],
        )
        collate = loop.data_collator

        def count_tokens(chosen: list[dict[str, Any]]) -> Any:
            batch = collate(chosen)
            tokens.append(int(batch["attention_mask"].sum()))
            return batch

        loop.data_collator = count_tokens
        loss = float(loop.train().training_loss)
    return timer, loss


def load_adapted(context: CheckContext) -> Any:
    """Return the model with a new adapter, as our training begins with."""
    from runyard.flows.blocks import Lora, Training
    from runyard.trainer.models.adapters import add_adapter
    from runyard.trainer.models.model import load_model

    folder = context.folder / "models" / LARGE_MODEL
    dtype = torch.float32 if context.is_dry else torch.bfloat16
    model = load_model(folder, dtype=dtype, device=choose_device(context))
    training = Training(mode="lora", lora=Lora(dropout=0.0), freeze=["vision"])
    torch.manual_seed(0)
    adapted = add_adapter(model, training, base=folder)
    adapted.module.train()
    return adapted


def read_samples(context: CheckContext) -> Iterator[tuple[Any, str]]:
    """Yield the images and answers of the dataset."""
    from PIL import Image

    from runyard.datasets.records import Vqa
    from runyard.datasets.versions import VersionFolder

    version = VersionFolder(context.folder / "datasets" / LARGE_MODEL)
    try:
        for item in version.items():
            record = item.records[0]
            if isinstance(record, Vqa):
                image = Image.open(io.BytesIO(version.read(item.sha256))).convert("RGB")
                yield image, str(record.interactions[0].answer)
    finally:
        version.close()


def make_text(processor: Any, answer: str) -> str:
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": answer},
    ]
    return str(processor.apply_chat_template(messages, tokenize=False))


def save_image(image: Any, path: Path) -> str:
    image.save(path)
    return str(path)


def make_arguments(
    context: CheckContext, folder: str, steps: int, recomputes: bool
) -> dict[str, Any]:
    """Return the arguments that both loops share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": context.batch_size,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "bf16": not context.is_dry,
        "gradient_checkpointing": recomputes,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recomputes else None,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": context.is_dry,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_strategy": "no",
    }


def make_callback(timer: StepTimer, tokens: list[int]) -> Any:
    """Return a callback that records each step. ``tokens`` has a batch more: it is drawn ahead."""
    from transformers import TrainerCallback

    class StepRecorder(TrainerCallback):  # type: ignore[misc]
        """Records the end of each step."""

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            timer.record_step(tokens[state.global_step - 1])

    return StepRecorder()
