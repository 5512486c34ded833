"""Ask a trained model about an image with plain transformers: using a trained model does not need
Runyard.

Uses the newest successful run of examples/quick_training.py, and asks it about one handwritten
digit.
"""

import json
import sys

from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoModelForImageTextToText, AutoProcessor

import vi

with vi.Client() as client:
    runs = [
        run
        for run in client.runs.list(condition="Succeeded").all_items()
        if run.spec.flow.name == "Quick Training"
    ]
    if not runs:
        sys.exit(
            "No run named Quick Training has succeeded yet; try examples/quick_training.py first."
        )
    downloaded = client.get_model(runs[0].run_id, ckpt="best")

model = AutoModelForImageTextToText.from_pretrained(downloaded.model_path)
processor = AutoProcessor.from_pretrained(downloaded.model_path)
blocks = json.loads(downloaded.run_config_path.read_text())["spec"]["flow"]["blocks"]
prompt = next(
    block["settings"]["systemPrompt"] for block in blocks if "system-prompt" in block["block"]
)

scans = load_digits()
image = Image.fromarray((scans.images[0] / 16 * 255).astype("uint8")).resize(
    (32, 32), Image.Resampling.BILINEAR
)
messages = [
    {"role": "system", "content": [{"type": "text", "text": prompt}]},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}],
    },
]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, images=[image.convert("RGB")], return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
print(
    f"It shows {scans.target[0]}; the model says "
    f"{processor.decode(answer, skip_special_tokens=True)}"
)
