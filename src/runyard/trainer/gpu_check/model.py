"""A Qwen2.5-VL with random weights, and samples whose images and answers differ in size.

No download is needed: configuration and processor are made here. ``LARGE`` has the shape of the
model with 3 billion parameters. The tokenizer knows few words, whatever the size of the vocabulary,
so the output layer costs as much as that of the real model.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTION = "What is on the shelf?"
SYSTEM_PROMPT = "Answer with the names of all objects."
DATASET, VERSION = "gpu-check", "0" * 16
WORDS = ("apple", "box", "cup", "door", "egg", "fork", "glass", "hat", "ink", "jar")
PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (
    PAD,
    BEGIN,
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a model and of its images, in pixels; ``sides`` are multiples of 28."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    rope_sections: tuple[int, int, int]  # half of a head's width
    vision_width: int
    vision_feed_forward: int
    vision_layers: int
    vision_heads: int
    full_attention_layers: tuple[int, ...]
    sides: tuple[int, ...]
    longest_answer: int  # words


TINY = ModelShape(
    vocabulary=512,
    width=64,
    feed_forward=128,
    layers=2,
    heads=2,
    key_value_heads=1,
    rope_sections=(4, 6, 6),
    vision_width=64,
    vision_feed_forward=128,
    vision_layers=2,
    vision_heads=2,
    full_attention_layers=(1,),
    sides=(56, 84),
    longest_answer=30,
)
SMALL = ModelShape(
    vocabulary=16_384,
    width=768,
    feed_forward=2048,
    layers=4,
    heads=12,
    key_value_heads=4,
    rope_sections=(8, 12, 12),
    vision_width=512,
    vision_feed_forward=1536,
    vision_layers=2,
    vision_heads=8,
    full_attention_layers=(1,),
    sides=(112, 224, 336),
    longest_answer=120,
)
LARGE = ModelShape(
    vocabulary=151_936,
    width=2048,
    feed_forward=11_008,
    layers=36,
    heads=16,
    key_value_heads=2,
    rope_sections=(16, 24, 24),
    vision_width=1280,
    vision_feed_forward=3420,
    vision_layers=32,
    vision_heads=16,
    full_attention_layers=(7, 15, 23, 31),
    sides=(448,),
    longest_answer=120,
)


def make_processor(shape: ModelShape) -> Any:
    """Return the family's own processor with a byte-level tokenizer and the PIL image backend."""
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from runyard.trainer.models.video import StandInVideoProcessor, install_video_stand_in

    install_video_stand_in()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(SPECIALS) + 100,
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{QUESTION} {SYSTEM_PROMPT}", " ".join(WORDS)], trainer)
    return t.Qwen2_5_VLProcessor(
        image_processor=t.Qwen2VLImageProcessorPil(
            min_pixels=min(shape.sides) ** 2, max_pixels=max(shape.sides) ** 2
        ),
        tokenizer=t.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=END, pad_token=PAD
        ),
        video_processor=StandInVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def make_config(shape: ModelShape, tokenizer: Any) -> Any:
    """Return the configuration of a model of this shape."""
    import transformers as t

    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": 32_768,
        "max_window_layers": shape.layers,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": list(shape.rope_sections),
        },
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": shape.width**-0.5,
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_feed_forward,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.width,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": list(shape.full_attention_layers),
        "initializer_range": shape.vision_width**-0.5,
    }
    return t.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=shape.width**-0.5,
    )


def save_model(folder: Path, shape: ModelShape, *, device: str, dtype: str) -> int:
    """Write a model with random weights, made on ``device``; return the number of its weights."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    processor = make_processor(shape)
    config = make_config(shape, processor.tokenizer)
    config.dtype = getattr(torch, dtype)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            module = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(parameter.numel() for parameter in module.parameters())


def make_image(number: int, side: int) -> bytes:
    """Return a photograph-like JPEG, different for each number."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    held = io.BytesIO()
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    image.save(held, "JPEG", quality=85)
    return held.getvalue()


def make_answer(number: int, shape: ModelShape) -> str:
    """Return an answer whose length depends on the number: one word up to the longest."""
    count = 1 + number * 7 % shape.longest_answer
    return " ".join(WORDS[(number + word) % len(WORDS)] for word in range(count))


def save_dataset(folder: Path, shape: ModelShape, count: int) -> None:
    """Write a version of a dataset as supervisors fetch it: one pack of images, a question each."""
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
    sides = [shape.sides[number % len(shape.sides)] for number in range(count)]
    images = [make_image(number, side) for number, side in enumerate(sides)]
    pack = b"".join(images)
    pack_name, offset, lines = hashlib.sha256(pack).hexdigest(), 0, []
    with open(folder / MANIFEST, "wb") as file:
        writer = ManifestWriter(file)
        for number, (data, side) in enumerate(zip(images, sides, strict=True)):
            sha256 = hashlib.sha256(data).hexdigest()
            lines.append(encode_contents_line(sha256, pack_name, offset, len(data)))
            offset += len(data)
            asked = Interaction(order=1, question=QUESTION, answer=make_answer(number, shape))
            writer.add(
                VersionImage(
                    filename=f"{number:05}.jpg",
                    sha256=sha256,
                    size=len(data),
                    width=side,
                    height=side,
                    mime="image/jpeg",
                    records=[Vqa(interactions=[asked])],
                )
            )
    (folder / PACKS / pack_name).write_bytes(pack)
    (folder / CONTENTS).write_bytes(b"".join(sorted(lines)))
    (folder / COMPLETE).write_text("{}")
