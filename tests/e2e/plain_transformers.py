"""Load a downloaded model with transformers alone, and answer questions about images.

It runs as a separate process, without Runyard's imports and settings. It takes the model's folder
and a folder with ``questions.json`` and its images, and prints one JSON object with the answers in
order.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

BATCH = 90


def main() -> None:
    model_dir, questions_dir = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(2)
    model = AutoModelForImageTextToText.from_pretrained(model_dir).eval()
    processor = AutoProcessor.from_pretrained(model_dir)
    processor.tokenizer.padding_side = "left"
    asked = json.loads((questions_dir / "questions.json").read_text())
    answers: list[str] = []
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        prompts = [prompt(processor, item["system"], item["question"]) for item in batch]
        images = [[Image.open(questions_dir / item["image"])] for item in batch]
        inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=24)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True)
    imported = sorted({name.partition(".")[0] for name in sys.modules} & {"runyard", "vi"})
    print(json.dumps({"answers": answers, "imported": imported, "class": type(model).__name__}))


def prompt(processor: object, system: str, question: str) -> str:
    """Return the conversation of the published client's inference: system text, image, question."""
    conversation = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
    ]
    text: str = processor.apply_chat_template(conversation, add_generation_prompt=True)  # type: ignore[attr-defined]
    return text


if __name__ == "__main__":
    main()
