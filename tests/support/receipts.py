"""Images like photographed receipts, with questions that only reading can answer."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SHOPS = ("Corner Market", "Blue Bakery", "City Books", "Green Garden", "Tool Town")
ITEMS = ("Bread", "Milk", "Apples", "Coffee", "Soap", "Paper", "Screws", "Novel", "Rice")
SIZE = (480, 720)
FORMAT = "JPEG"


def write_receipts(folder: Path, *, count: int, seed: int = 0) -> int:
    """Write images and four questions about each as Vi JSONL; return the number of questions."""
    rng = random.Random(seed)  # noqa: S311 - test data
    (folder / "images").mkdir(parents=True)
    rows, questions = [], 0
    for number in range(count):
        name = f"images/{number:05}.jpg"
        answers = draw_receipt(folder / name, rng)
        interactions = [
            {"order": order, "question": question, "answer": answer}
            for order, (question, answer) in enumerate(answers.items(), 1)
        ]
        questions += len(interactions)
        asset = {"type": "Image", "filename": name, "width": SIZE[0], "height": SIZE[1]}
        contents = {"type": "Vqa", "interactions": interactions}
        rows.append({"id": str(number), "asset": asset, "contents": contents})
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions


def draw_receipt(path: Path, rng: random.Random) -> dict[str, str]:
    """Draw a receipt; return the true answer to each question."""
    image = Image.new("RGB", SIZE, (rng.randint(225, 255),) * 3)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(26)
    items = [(rng.choice(ITEMS), rng.randint(50, 2999)) for _ in range(rng.randint(2, 6))]
    answers = {
        "What is the total?": f"{sum(cents for _, cents in items) / 100:.2f}",
        "What is the date?": f"{rng.randint(2015, 2026)}-{rng.randint(1, 12):02}-"
        f"{rng.randint(1, 28):02}",
        "What is the number of the receipt?": str(rng.randint(100_000, 999_999)),
        "At what time was it paid?": f"{rng.randint(7, 21):02}:{rng.randint(0, 59):02}",
    }
    total, date, receipt, time = answers.values()
    lines = [rng.choice(SHOPS), f"No. {receipt}", f"{date} {time}", ""]
    lines += [f"{name:<12}{cents / 100:>8.2f}" for name, cents in items]
    lines += ["", f"{'TOTAL':<12}{total:>8}"]
    left, top = rng.randint(20, 60), rng.randint(20, 80)
    for index, line in enumerate(lines):
        draw.text((left, top + 42 * index), line, fill=(20, 20, 20), font=font)
    image.save(path, FORMAT, quality=80)
    return answers
