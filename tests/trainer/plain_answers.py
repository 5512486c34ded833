"""Answers of checkpoints with transformers and peft alone; ``test_export.py`` runs this.

The argument is a JSON file with a list of ``{"checkpoint", "quantization", "exports", "images",
"questions"}``. The last line of the output has the answers to each question: of the checkpoint with
its adapter if it has one, of its ``model_full`` without one, and of each export. An export is a
complete model, or an adapter that is added to the checkpoint's base.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModel, PeftModel
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

warnings.filterwarnings("error", message=".*newly initialized.*")


def ask(model: Any, full: Path, image: str, question: str) -> str:
    flow = json.loads((full / "run.json").read_text())["spec"]["flow"]
    system = next(
        b["settings"]["systemPrompt"] for b in flow["blocks"] if "system-prompt" in b["block"]
    )
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
    ]
    inputs, tokenizer = read(full, messages, Image.open(image).convert("RGB"))
    # An adapter's base, as it is found by ``AutoPeftModel``, has settings of before the training.
    generation = GenerationConfig.from_pretrained(full)
    with torch.no_grad():
        made = model.generate(**inputs, generation_config=generation)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def load(folder: Path, quantization: str | None) -> Any:
    options = {}
    if quantization:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=True,
        )
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, **options
    ).eval()
    # Rows shorter than a block of 64 cannot be laid out for processors with bfloat16.
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def read(
    full: Path, messages: list[dict[str, Any]], image: Any
) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the model's inputs.

    Qwen's processor is assembled by hand: the complete one needs torchvision, for videos.
    """
    if json.loads((full / "config.json").read_text())["model_type"] != "qwen3_vl":
        processor = AutoProcessor.from_pretrained(full, backend="pil")
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        return dict(
            processor(images=[image], text=[text], return_tensors="pt")
        ), processor.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(full)
    images = AutoImageProcessor.from_pretrained(full, backend="pil")
    template = (full / "chat_template.jinja").read_text()
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    seen = images(images=[image], return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // images.merge_size**2
    inputs = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")
    is_image = inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {**inputs, **seen, "mm_token_type_ids": is_image.int()}, tokenizer


def main() -> None:
    torch.set_num_threads(1)
    found = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        full, adapter = (
            Path(case["checkpoint"], "model_full"),
            Path(case["checkpoint"], "model_adapter"),
        )
        asked = list(zip(case["images"], case["questions"], strict=True))
        model = load(full, case["quantization"])
        base = [ask(model, full, image, question) for image, question in asked]
        answers = base
        if adapter.is_dir():
            model = PeftModel.from_pretrained(model, str(adapter)).eval()
            answers = [ask(model, full, image, question) for image, question in asked]
        exported = {}
        for form, folder in case.get("exports", {}).items():
            whole = full if form == "adapter" else Path(folder)
            if form == "adapter" and not case["quantization"]:  # finds its base by itself
                model = AutoPeftModel.from_pretrained(folder, dtype=torch.float32).eval()
            else:
                model = load(whole, case["quantization"] if form == "adapter" else None)
                if form == "adapter":
                    model = PeftModel.from_pretrained(model, folder).eval()
            exported[form] = [ask(model, whole, image, question) for image, question in asked]
        found.append({"base": base, "answers": answers, "exported": exported})
    print(json.dumps({"found": found, "runyard": "runyard" in sys.modules}))


main()
