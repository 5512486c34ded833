"""Train a model that draws boxes on a folder of your own images with labels: import, train, ask.

Takes the folder to import and an image to ask about; the defaults are ./images and the first image
in it. Labels may be COCO, Pascal VOC, YOLO, CSV or Vi JSONL. This is a short run: 40 steps of the
tiny model are too few for good results.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

import runyard.predict
import vi

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "images")
image_path = Path(sys.argv[2]) if len(sys.argv) > 2 else min(folder.rglob("*.png"))

with vi.Client() as client:
    imported = client.datasets.import_folder(folder)
    print(imported.summary())
    for found in imported.findings[:10]:
        print(f"  {found.file}: {found.cause} ({found.cure})")

    blocks = [
        {"block": "vi-dataset", "settings": {"datasetId": imported.dataset_id}},
        {
            "block": "vi-model",
            "settings": {"hyperparameters": {"maxSteps": 40}, "validation": {"maxSamples": 20}},
        },
    ]
    flow = client.flows.create({"name": imported.dataset.name, "blocks": blocks})
    run = client.runs.wait(client.runs.create(flow=flow.flow_id).run_id, timeout=600)
    model = client.get_model(run.run_id, ckpt="best", save_path="models")

image = ImageOps.exif_transpose(Image.open(image_path)).convert("RGB")
prediction = runyard.predict.load(model.model_path).predict(image, "What is here?")
draw = ImageDraw.Draw(image)
for box in prediction.boxes:
    draw.rectangle((box.left, box.top, box.right, box.bottom), outline="red")
image.save("answer.png")
print(f"The model says: {prediction.answer}; its boxes are drawn in answer.png")
