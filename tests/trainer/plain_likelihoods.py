"""Likelihoods of recorded answers with transformers and peft alone; ``test_smollm2.py`` runs this.

The arguments are the folders of a merged export, of an adapter export, and of the images. The last
line of the output has the log-likelihood of each line of ``predictions.jsonl`` under both.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def score(model: Any, processor: Any, system: str, line: dict[str, Any], images: Path) -> float:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": line["question"]}],
        },
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = Image.open(images / line["filename"]).convert("RGB")
    inputs = processor(images=[image], text=[prompt], return_tensors="pt")
    answer = processor.tokenizer(
        line["raw"] + processor.tokenizer.eos_token, add_special_tokens=False, return_tensors="pt"
    )["input_ids"][:, : line["tokenCount"]]  # an answer that was cut off has no end
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=inputs["pixel_values"],
            pixel_attention_mask=inputs.get("pixel_attention_mask"),
        ).logits[0]
    width = answer.shape[1]
    chosen = logits[-width - 1 : -1].double().log_softmax(-1).gather(1, answer[0][:, None])
    return float(chosen.sum())


def main() -> None:
    torch.set_num_threads(1)
    merged, adapter, images = map(Path, sys.argv[1:])
    flow = json.loads((merged / "run.json").read_text())["spec"]["flow"]
    system = next(
        block["settings"]["systemPrompt"]
        for block in flow["blocks"]
        if "system-prompt" in block["block"]
    )
    lines = [json.loads(line) for line in (merged / "predictions.jsonl").read_text().splitlines()]
    compared = json.loads((merged / "export.json").read_text())["comparison"]["answers"]
    lines = [line | answer for line, answer in zip(lines, compared, strict=True)]
    processor = AutoProcessor.from_pretrained(merged, backend="pil")
    models = {
        "merged": AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.bfloat16),
        "adapter": AutoPeftModel.from_pretrained(adapter, dtype=torch.bfloat16),
    }
    found = {
        name: [score(model.eval(), processor, system, line, images) for line in lines]
        for name, model in models.items()
    }
    print(json.dumps({**found, "runyard": "runyard" in sys.modules}))


main()
