"""The ``tiny`` preset: an Idefics3-shaped model of about 200,000 parameters, built here and trained
from scratch.

It lets a laptop without an accelerator learn something real in half a minute, through the same code
that trains large models: same processor, same chat template, same checkpoint. It needs no download
and no torchvision, and loads with plain transformers.

Three choices make it work (measured, see docs/decisions/tiny-model.md). The weights start at a
standard deviation of 0.06, because transformers' own 0.02 is far too small for a width of 64.
Pixels are normalized with mean and deviation of the data, not of photographs. And text that is
always the same (prompt, question, the scaffolding of an answer) is one token each, so that nearly
every token of an answer is a decision.
"""

from dataclasses import dataclass
from typing import Any

from runyard.flows.tiny import IMAGE_SIDES
from runyard.trainer.answers import SCAFFOLDING

IMAGE_TOKEN = "<image>"  # noqa: S105 - an entry of the vocabulary
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<end_of_utterance>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIALS = (PAD, BEGIN, END, *ROLES, IMAGE_TOKEN, "<fake_token_around_image>", "<global-img>")

# The training corpus of ordinary merges: words of likely questions, numbers of boxes on small
# canvases.
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CORPUS = (
    *WORDS,
    *(
        f"Which digit is this? What number is the {w}? Where is the {w} in the picture? Locate the "
        f"{w}."
        for w in WORDS
    ),
    *(str(round(pixel * 1024 / 48)) for pixel in range(49)),
)
LEARNED_MERGES = 220
# Runs of letters, single spaces and runs of digits are separate, so that a word is the same token
# in any position.
PRETOKENIZER_PATTERN = r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9]"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% "
    "endif %}"
    "{% if message['role'] == 'assistant' %}<end_of_utterance>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """Sizes of the preset. ``merge`` is how many patches per side become one image token."""

    image_size: int = IMAGE_SIDES["vqa"]
    patch_size: int = 8
    merge: int = 2
    vision_width: int = 64
    vision_layers: int = 2
    text_width: int = 64
    text_layers: int = 2
    heads: int = 2
    text_feed_forward: int = 128
    init_std: float = 0.06

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch_size // self.merge) ** 2


# One answer about an image needs few image tokens; locating objects needs one per patch.
SHAPES = {
    "vqa": TinyShape(),
    "phrase-grounding": TinyShape(image_size=IMAGE_SIDES["phrase-grounding"], merge=1),
}


def make_tokenizer(phrases: list[str]) -> Any:
    """Return a byte-level BPE tokenizer in which each of ``phrases`` and the scaffolding of answers
    is one token.

    Deterministic: the same phrases give the same vocabulary. Its alphabet is all bytes, so no text
    is unknown.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIALS) + LEARNED_MERGES,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    whole = [*SCAFFOLDING, *(phrase for phrase in phrases if len(phrase) > 1)]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in dict.fromkeys(whole)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        padding_side="right",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def make_processor(
    shape: TinyShape, phrases: list[str], *, pixel_mean: float, pixel_std: float
) -> Any:
    """Return the family's own processor with this tokenizer and the PIL image backend."""
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    images = Idefics3ImageProcessorPil(
        size={"longest_edge": shape.image_size},
        max_image_size={"longest_edge": shape.image_size},
        do_image_splitting=False,
        image_mean=[pixel_mean] * 3,
        image_std=[pixel_std] * 3,
    )
    return Idefics3Processor(
        image_processor=images,
        tokenizer=make_tokenizer(phrases),
        image_seq_len=shape.image_tokens,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(shape: TinyShape, processor: Any) -> Any:
    """Return a model with fresh weights from torch's random state (seed it first)."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    tokenizer = processor.tokenizer
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": shape.text_width,
        "intermediate_size": shape.text_feed_forward,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": shape.init_std,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_width * 2,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "initializer_range": shape.init_std,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=shape.merge,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=shape.init_std,
    )
    return Idefics3ForConditionalGeneration(config)
