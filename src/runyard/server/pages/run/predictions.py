"""The tab *Predictions*: the samples of an evaluation with their true and predicted boxes."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from runyard.server.pages.views import NOTHING, format_number
from runyard.server.services.runs.telemetry.samples import SamplePage
from vi.api.resources.runs.responses import Sample

ORDERS = (("score", "worst first"), ("index", "by number"))
_MOST_TILE_BOXES = 60


class Rectangle(NamedTuple):
    """A box in percent of the image's sides."""

    x: str
    y: str
    width: str
    height: str


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """One sample in the gallery."""

    index: int
    href: str
    image: str
    label: str
    score: str
    is_right: bool
    is_current: bool
    truth: list[Rectangle]
    predicted: list[Rectangle]
    text: str
    width: int
    height: int


class EvaluationLink(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation to look at."""

    step: int
    href: str
    is_current: bool


class PastScore(msgspec.Struct, frozen=True, kw_only=True):
    """What this sample scored in an evaluation."""

    step: int
    score: str
    href: str
    is_current: bool


class SampleView(msgspec.Struct, frozen=True, kw_only=True):
    """The sample that is shown large."""

    index: int
    image: str
    label: str
    boxes: str
    question: str
    truth: str
    predicted: str
    raw: str
    is_right: bool
    parse: str
    scores: list[tuple[str, str]]
    history: list[PastScore]


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """The gallery of an evaluation. ``position`` counts the evaluations from 0."""

    base: str
    href: str
    step: int
    position: int
    evaluations: list[EvaluationLink]
    order: str
    orders: list[tuple[str, str, str]]
    tiles: list[Tile]
    sample: SampleView | None
    next_href: str
    count: str
    empty: str


def build_predictions(
    found: SamplePage,
    *,
    shown: Sample | None,
    history: Sequence[Sample],
    order: str,
    base: str,
    empty: str,
) -> Predictions:
    """Return the gallery of one evaluation."""
    step, steps = found.step or 0, found.evaluations

    def link(**changes: Any) -> str:
        query = {"evaluation": step, "orderBy": order} | changes
        return f"{base}/predictions?" + urlencode({k: v for k, v in query.items() if v is not None})

    index = None if shown is None else shown.index
    return Predictions(
        base=base,
        href=link(index=index) if steps else f"{base}/predictions",
        step=step,
        position=steps.index(step) if step in steps else 0,
        evaluations=[
            EvaluationLink(step=one, href=link(evaluation=one, index=index), is_current=one == step)
            for one in steps
        ],
        order=order,
        orders=[(value, text, link(orderBy=value)) for value, text in ORDERS],
        tiles=[
            _build_tile(sample, link(index=sample.index), is_current=sample.index == index)
            for sample in found.items
        ],
        sample=None if shown is None else _build_sample(shown, history, link=link),
        next_href="" if found.next_page is None else link(p=found.next_page),
        count=f"{len(found.items)} of {found.total:,} samples" if found.total else "",
        empty=empty,
    )


def choose_sample(samples: Sequence[Sample], index: int | None) -> Sample | None:
    """Return the sample to show large: the one asked for, else the first."""
    first = samples[0] if samples else None
    return next((sample for sample in samples if sample.index == index), first)


def format_score(sample: Sample) -> str:
    """Return the score that samples are sorted by."""
    return NOTHING if sample.score is None else format_number(sample.score)


def is_right(sample: Sample) -> bool:
    """Return whether an answer counts as right."""
    if sample.score is None:
        return False
    return sample.score >= (0.5 if "iou" in sample.scores else 1)


def _build_tile(sample: Sample, href: str, *, is_current: bool) -> Tile:
    return Tile(
        index=sample.index,
        href=href,
        image=f"{sample.image.href}?size=160" if sample.image.href else "",
        label=f"Sample {sample.index}: {sample.question}"[:200],
        score=format_score(sample),
        is_right=is_right(sample),
        is_current=is_current,
        truth=[_place(box) for box in sample.truth.boxes[:_MOST_TILE_BOXES]],
        predicted=[_place(box) for box in sample.predicted.boxes[:_MOST_TILE_BOXES]],
        text=sample.predicted.text[:60],
        width=sample.image.width,
        height=sample.image.height,
    )


def _place(box: Any) -> Rectangle:
    x0, y0, x1, y1 = (100 * min(max(float(value), 0.0), 1.0) for value in box.box)
    return Rectangle(f"{x0:.2f}", f"{y0:.2f}", f"{max(x1 - x0, 0):.2f}", f"{max(y1 - y0, 0):.2f}")


def _build_sample(sample: Sample, history: Sequence[Sample], *, link: Any) -> SampleView:
    boxes = {
        kind: [{"box": list(box.box), "phrase": box.phrase} for box in side.boxes]
        for kind, side in (("truth", sample.truth), ("predicted", sample.predicted))
    }
    return SampleView(
        index=sample.index,
        image=sample.image.href,
        label=f"Sample {sample.index}: {len(boxes['truth'])} true and {len(boxes['predicted'])} "
        "predicted boxes",
        boxes=json.dumps(boxes),
        question=sample.question,
        truth=sample.truth.text,
        predicted=sample.predicted.text,
        raw="" if sample.raw == sample.predicted.text else sample.raw,
        is_right=is_right(sample),
        parse=sample.parse,
        scores=[(name, format_number(value)) for name, value in sample.scores.items()],
        history=[
            PastScore(
                step=past.step,
                score=format_score(past),
                href=link(evaluation=past.step, index=sample.index),
                is_current=past.step == sample.step,
            )
            for past in history
        ],
    )
