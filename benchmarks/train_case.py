"""The cases of ``train_speed.py``: a model with random weights, and samples in each loop's format.

Images are scikit-learn's handwritten digits, answers the digit or invented text. The same samples
are written as a dataset's version with an attempt's folder (the input of our trainer) and as
images with ``case.json`` for the other loops. ``case.json`` also lists our trainer's batches and
the tokens of every sample.

The medium model is shaped like Idefics3 and SmolVLM at 35-40 million parameters. The number
of words of its output layer decides how much is gained by leaving out the prompt's columns, as ours
does. With 12,288 words that layer has a quarter of the language model's other weights, as in
SmolVLM-256M (49,280 words of width 576 under 30 layers). With 32,768 words, as in large models, it
would have two thirds in a model this small, which would favor ours.
"""

import hashlib
import io
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIXED_MEAN_TOKENS, MIXED_MOST_TOKENS = 40, 200
DATASET, VERSION, SEED = "digits-answered", "0" * 16, 7
QUESTION = "Which digit is this?"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# More than any case fills; without it every image would be decoded again each time.
CACHE_BYTES = 4 << 30
# A word and a space: the tiny tokenizer keeps them apart, and so does the medium one.
TEXT_TOKENS_PER_WORD = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What distinguishes a case.

    ``steps`` are a multiple of ``train_loops.LOG_EVERY`` times four.
    """

    name: str
    is_tiny: bool
    is_mixed: bool = False
    is_frozen: bool = False
    samples: int
    batch_size: int
    steps: int
    rate: float

    @property
    def is_uniform(self) -> bool:
        """Return whether all steps are alike, so that their median is the time of a step."""
        return not (self.is_mixed or self.is_frozen)

    @property
    def rounds(self) -> int:
        """Processes of each loop.

        Long steps differ little from round to round, and cost most of the time.
        """
        return 3 if self.is_tiny else 2

    @property
    def settling_steps(self) -> int:
        """Steps at the beginning that are not counted.

        With a frozen tower what the first epoch pays for counts.
        """
        return 1 if self.is_frozen else 3


CASES = {
    shape.name: shape
    for shape in (
        Shape(name="tiny", is_tiny=True, samples=1280, batch_size=32, steps=160, rate=3e-3),
        Shape(
            name="tiny-mixed",
            is_tiny=True,
            is_mixed=True,
            samples=640,
            batch_size=32,
            steps=40,
            rate=3e-3,
        ),
        Shape(name="medium", is_tiny=False, samples=160, batch_size=8, steps=20, rate=3e-4),
        Shape(
            name="medium-mixed",
            is_tiny=False,
            is_mixed=True,
            samples=160,
            batch_size=8,
            steps=20,
            rate=3e-4,
        ),
        Shape(
            name="frozen",
            is_tiny=False,
            is_frozen=True,
            samples=40,
            batch_size=8,
            steps=20,
            rate=3e-4,
        ),
    )
}


def write_case(
    folder: Path, shape: Shape, *, vocabulary: int, threads: int, micro_batch: int | str
) -> None:
    """Write all inputs of the loops below ``folder``."""
    from runyard.flows.resolved_flow import SYSTEM_PROMPTS
    from runyard.trainer.answers import write_vqa
    from runyard.trainer.data.encode import epoch_batches

    folder.mkdir(parents=True)
    system = SYSTEM_PROMPTS["vqa"]
    make_model(folder / "model", shape, system, vocabulary)
    images, answers = make_images(shape), make_answers(shape)
    (folder / "images").mkdir()
    for number, image in enumerate(images):
        (folder / "images" / f"{number:05}.png").write_bytes(image)
    write_version(folder / "version", images, answers)
    write_attempt(folder, shape, threads=threads, micro_batch=micro_batch)
    rows = [
        {
            "image": f"images/{at:05}.png",
            "system": system,
            "question": QUESTION,
            "answer": write_vqa(answer),
        }
        for at, answer in enumerate(answers)
    ]
    lengths = token_counts(folder / "model", system, [row["answer"] for row in rows])
    epochs = -(-shape.steps * shape.batch_size // shape.samples)
    drawn = [
        batch
        for epoch in range(epochs)
        for batch in epoch_batches(lengths, batch_size=shape.batch_size, seed=SEED, epoch=epoch)
    ]
    document = {
        "rows": rows,
        "tokens": lengths.tolist(),
        "batches": drawn[: shape.steps],
        "batchSize": shape.batch_size,
        "steps": shape.steps,
        "learningRate": shape.rate,
        "isFrozen": shape.is_frozen,
        "attempt": str(folder / "runs" / "org" / "run" / "attempts" / "1"),
        "parameters": parameters_in(folder / "model"),
    }
    (folder / "case.json").write_text(json.dumps(document))


def forget_attempt(folder: Path) -> None:
    """Restore attempt and cache as before training, so that each round starts the same."""
    attempt = Path(json.loads((folder / "case.json").read_text())["attempt"])
    kept = {name: (attempt / name).read_bytes() for name in ("run.json", "dataset.json")}
    shutil.rmtree(attempt.parent.parent)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    attempt.mkdir(parents=True)
    for name, data in kept.items():
        (attempt / name).write_bytes(data)


def make_images(shape: Shape) -> list[bytes]:
    from PIL import Image
    from sklearn.datasets import load_digits

    side, found = 32 if shape.is_tiny else 96, []
    for scan in load_digits().images[: shape.samples]:
        held = io.BytesIO()
        Image.fromarray((scan / 16 * 255).astype("uint8")).resize((side, side)).convert("RGB").save(
            held, "PNG"
        )
        found.append(held.getvalue())
    return found


def make_answers(shape: Shape) -> list[str]:
    """The digit; where lengths are mixed, as many words more as a geometric distribution says."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = [int(digit) for digit in load_digits().target[: shape.samples]]
    if not shape.is_mixed:
        return [str(digit) for digit in digits]
    numbers = random.Random(SEED)  # noqa: S311 - no secrets
    tokens = (
        np.random.default_rng(SEED)
        .geometric(1 / MIXED_MEAN_TOKENS, shape.samples)
        .clip(max=MIXED_MOST_TOKENS)
    )
    return [
        " ".join(
            [
                WORDS[digit],
                *(numbers.choice(WORDS) for _ in range(int(count) // TEXT_TOKENS_PER_WORD)),
            ]
        )
        for digit, count in zip(digits, tokens, strict=True)
    ]


def make_model(folder: Path, shape: Shape, system: str, vocabulary: int) -> None:
    import torch

    if shape.is_tiny:
        from runyard.trainer.models.model import build_tiny

        model = build_tiny(task="vqa", phrases=[system], samples=None, seed=SEED)
        module, processor = model.module, model.processor
    else:
        torch.manual_seed(SEED)
        module, processor = make_medium(vocabulary)
    module.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_medium(vocabulary: int) -> tuple[Any, Any]:
    """36 patches of 16 joined 2 x 2.

    Only a few hundred of the vocabulary's words occur; all have an output.
    """
    import transformers as t

    from runyard.trainer.models import tiny

    tokenizer = tiny.make_tokenizer([])
    images = t.Idefics3ImageProcessorPil(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 96}, do_image_splitting=False
    )
    processor = t.Idefics3Processor(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=9,
        chat_template=tiny.CHAT_TEMPLATE,
    )
    text = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": 384,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": 96,
        "patch_size": 16,
    }
    config = t.Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids(tiny.IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return t.Idefics3ForConditionalGeneration(config), processor


def token_counts(model: Path, system: str, answers: list[str]) -> Any:
    """Tokens of every sample, prompt and answer, as our encoder counts them."""
    import numpy as np
    from PIL import Image

    from runyard.trainer.data.encode import Encoder
    from runyard.trainer.families import get_family_parts
    from runyard.trainer.models.model import load_processor

    processor = load_processor(model)
    encoder = Encoder(processor, get_family_parts("idefics3"), system_prompt=system, task="vqa")
    prompt = len(encoder.encode_question(Image.new("RGB", (32, 32)), QUESTION).prompt)
    ends = 1  # the token behind an answer
    return np.asarray(
        [
            prompt + len(processor.tokenizer(a, add_special_tokens=False)["input_ids"]) + ends
            for a in answers
        ]
    )


def parameters_in(folder: Path) -> int:
    from transformers import AutoModelForImageTextToText

    module = AutoModelForImageTextToText.from_pretrained(folder)
    return sum(parameter.numel() for parameter in module.parameters())


def write_version(folder: Path, images: list[bytes], answers: list[str]) -> None:
    """Write a version's folder like a supervisor, with one pack."""
    from PIL import Image

    from runyard.datasets.records import Interaction, Vqa
    from runyard.datasets.versions import (
        CONTENTS,
        MANIFEST,
        PACKS,
        ManifestWriter,
        VersionImage,
        encode_contents_line,
    )
    from runyard.rundir import COMPLETE

    (folder / PACKS).mkdir(parents=True)
    pack = b"".join(images)
    name, offset, lines = hashlib.sha256(pack).hexdigest(), 0, {}
    with open(folder / MANIFEST, "wb") as file:
        writer = ManifestWriter(file)
        for number, (data, answer) in enumerate(zip(images, answers, strict=True)):
            sha256 = hashlib.sha256(data).hexdigest()
            lines.setdefault(sha256, encode_contents_line(sha256, name, offset, len(data)))
            offset += len(data)
            asked = Vqa(interactions=[Interaction(order=1, question=QUESTION, answer=answer)])
            with Image.open(io.BytesIO(data)) as opened:
                width, height = opened.size
            writer.add(
                VersionImage(
                    filename=f"{number:05}.png",
                    sha256=sha256,
                    size=len(data),
                    width=width,
                    height=height,
                    mime="image/png",
                    records=[asked],
                )
            )
    (folder / PACKS / name).write_bytes(pack)
    (folder / CONTENTS).write_bytes(b"".join(sorted(lines.values())))
    (folder / COMPLETE).write_text("{}")


def write_attempt(folder: Path, shape: Shape, *, threads: int, micro_batch: int | str) -> None:
    """Return the flow that matches the other loops: no evaluation, one final checkpoint."""
    attempt = folder / "runs" / "org" / "run" / "attempts" / "1"
    attempt.mkdir(parents=True)
    data = {
        "datasetId": DATASET,
        "datasetVersion": VERSION,
        "projectKind": "vqa",
        "augmentation": {},
        "validationFraction": 0,
    }
    never = {"every": {"steps": 1_000_000}}
    model = {
        "architecture": {"weights": str(folder / "model")}
        | ({"size": "tiny"} if shape.is_tiny else {}),
        "training": {"mode": "full", "freeze": ["vision"] if shape.is_frozen else []},
        "compute": {"precisionType": "float32"},
        "hyperparameters": {
            "epochs": 10_000,
            "maxSteps": shape.steps,
            "batchSize": shape.batch_size,
            "microBatchSize": micro_batch,
            "learningRate": shape.rate,
            "schedule": {"name": "linear", "warmupFraction": 0, "minFactor": 0},
        },
        "checkpoint": never,
        "validation": never,
    }
    blocks = [("vi-dataset", data), ("vi-model", model)]
    flow = {
        "name": shape.name,
        "schema": "v1",
        "tolerations": {},
        "settings": {"seed": SEED},
        "blocks": [{"block": name, "settings": settings, "style": {}} for name, settings in blocks],
    }
    document = {"kind": "Run", "workspaceId": "org", "runId": "run", "spec": {"flow": flow}}
    config = {"run": document, "attempt": 1, "threads": threads, "cacheBytes": CACHE_BYTES}
    config |= {"dataDir": str(folder / "data"), "modelFolders": [str(folder)]}
    (attempt / "run.json").write_text(json.dumps(config))
    version = {"folder": str(folder / "version"), "dataset": DATASET, "version": VERSION}
    (attempt / "dataset.json").write_text(json.dumps(version))
