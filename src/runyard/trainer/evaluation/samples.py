"""Sample predictions of each evaluation, in the form in which people look at them.

``samples.jsonl`` in the attempt's folder is shipped by the supervisor, line by line, each once. Of
an evaluation it has the first ``FIRST`` held-out samples, which are the same each time, so that one
image can be followed over the run, and the ``WORST`` others with the lowest score. All predictions
are in the file of ``predictions.py``.

    {"kind": "evaluation", "step": 400, "time": 1700000000000, "total": 500, "samples": 128}
    {"kind": "image", "index": 3, "png": "89504e47..."}
    {"kind": "sample", "step": 400, "index": 3, "score": 0.12, ...}

Boxes are fractions of the image's width and height. An image is written once per attempt, and only
if it is not one of an uploaded dataset, whose images the server has.
"""

import errno
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runyard.rundir import AttemptDir
from runyard.trainer.answers import BOX_SCALE, METRICS, describe_form
from runyard.trainer.data.datasets import Sample

FIRST, WORST = 64, 64
MAX_TEXT = 4000  # characters
MAX_BOXES = 1000  # true, and predicted
MAX_LINE_BYTES = 192 << 10  # a supervisor reads 256 KiB at once


class SampleWriter:
    """Writer of ``samples.jsonl``. ``explain`` says why an output has no valid form, if so."""

    def __init__(
        self,
        folder: Path,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        explain: Callable[[Sample, str], str | None] = lambda sample, raw: describe_form(raw),
    ):
        self._path, self._now_ms, self._explain = AttemptDir(folder).samples, now_ms, explain
        self._written_images: set[int] = set()

    def write(
        self,
        step: int,
        predictions: Sequence[dict[str, Any]],
        samples: Sequence[Sample],
        *,
        metric: str,
    ) -> None:
        """Append the samples of an evaluation, durably.

        Raises:
            OSError: the disk refused them; none of them are in the file.
        """
        scores = [choose_score(line["scores"], metric) for line in predictions]
        chosen = choose_samples(scores)
        lines: list[dict[str, Any]] = [
            {
                "kind": "evaluation",
                "step": step,
                "time": self._now_ms(),
                "total": len(predictions),
                "samples": len(chosen),
            }
        ]
        images: list[dict[str, Any]] = [
            {"kind": "image", "index": index, "png": _encode_png(samples[index])}
            for index in chosen
            if not samples[index].image_sha256 and index not in self._written_images
        ]
        lines += images
        lines += [
            make_line(
                step,
                predictions[index],
                samples[index],
                score=scores[index],
                problem=self._explain(samples[index], predictions[index]["raw"]),
            )
            for index in chosen
        ]
        self._append(b"".join(map(_encode_line, lines)))
        self._written_images.update(image["index"] for image in images)

    def _append(self, data: bytes) -> None:
        with open(self._path, "ab", buffering=0) as file:
            size_bytes = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size_bytes)
                raise


def choose_score(scores: dict[str, float], metric: str) -> float | None:
    """Return the score by which samples are ordered: by the run's metric, or the task's first."""
    names = itertools.chain([metric], *METRICS.values())
    return next((scores[name] for name in names if name in scores), None)


def choose_samples(scores: Sequence[float | None]) -> list[int]:
    """Return the indices of the samples to keep, in order."""
    others = [(score, index) for index, score in enumerate(scores) if score is not None]
    worst = sorted(item for item in others if item[1] >= FIRST)[:WORST]
    return [*range(min(FIRST, len(scores))), *sorted(index for _, index in worst)]


def make_line(
    step: int,
    prediction: dict[str, Any],
    sample: Sample,
    *,
    score: float | None,
    problem: str | None = None,
) -> dict[str, Any]:
    """Return the line of a sample; long texts and many boxes are cut, and the line says so."""
    width, height = sample.image_size
    image: dict[str, Any] = {"width": width, "height": height}
    if sample.image_sha256:
        image |= {"sha256": sample.image_sha256, "filename": sample.filename}
    truth, boxes = prediction.get("truthBoxes", []), prediction.get("boxes", [])
    question = describe_question(sample)
    texts = [question, *(prediction[name] for name in ("truth", "answer", "raw"))]
    is_cut = max(map(len, texts)) > MAX_TEXT or max(len(truth), len(boxes)) > MAX_BOXES
    line: dict[str, Any] = {
        "kind": "sample",
        "step": step,
        "index": prediction["index"],
        "score": score,
        "image": image,
        "question": question[-MAX_TEXT:] if sample.turns else question[:MAX_TEXT],
        "truth": {"text": prediction["truth"][:MAX_TEXT], "boxes": _scale_boxes(truth)},
        "predicted": {"text": prediction["answer"][:MAX_TEXT], "boxes": _scale_boxes(boxes)},
        "raw": prediction["raw"][:MAX_TEXT],
        "parse": problem or "ok",
        "scores": prediction["scores"],
        "isCut": is_cut,
    }
    if len(_encode_line(line)) > MAX_LINE_BYTES:  # long phrases at many boxes
        for answer in (line["truth"], line["predicted"]):
            answer["boxes"] = [{**box, "phrase": box["phrase"][:20]} for box in answer["boxes"]]
        line["isCut"] = True
    return line


def describe_question(sample: Sample) -> str:
    """Return the question; of a conversation all turns up to it, with their roles."""
    if len(sample.turns) <= 2:
        return sample.question
    return "\n".join(f"{turn.role}: {turn.content}" for turn in sample.turns[:-1])


def _scale_boxes(boxes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return boxes as fractions; a model may write any number, so they are clipped."""
    return [
        {
            "box": [round(min(max(value, 0), BOX_SCALE) / BOX_SCALE, 5) for value in item["box"]],
            "phrase": item["phrase"][:MAX_TEXT],
        }
        for item in boxes[:MAX_BOXES]
    ]


def _encode_png(sample: Sample) -> str:
    """Return an image as hex digits of a PNG, in which nothing looks like a key."""
    buffer = io.BytesIO()
    sample.image.save(buffer, "PNG")
    return buffer.getvalue().hex()


def _encode_line(line: dict[str, Any]) -> bytes:
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace") + b"\n"
