"""The tab *Predictions*: the samples of an evaluation with their true and predicted boxes."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from runyard.server.pages.views import NOTHING, format_number

ORDERS = (("score", "worst first"), ("index", "by number"))
PAGE = 24
_MOST_TILE_BOXES = 60
# Scores that stand for the whole answer, the most telling first.
_MAIN_SCORES = ("iou", "exactMatch", "anls", "f1At50", "accuracyAt50")


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
    is_right: bool
    parse: str
    scores: list[tuple[str, str]]
    history: list[PastScore]
    previous_href: str
    next_href: str


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """The gallery of an evaluation. ``position`` counts the evaluations from 0."""

    base: str
    step: int
    position: int
    evaluations: list[EvaluationLink]
    order: str
    orders: list[tuple[str, str, str]]
    tiles: list[Tile]
    sample: SampleView | None
    next_href: str
    empty: str


def build_predictions(
    samples: Sequence[Any],
    *,
    evaluations: Sequence[int],
    step: int,
    index: int | None,
    order: str,
    base: str,
    api: str,
    next_token: str | None,
    history: Sequence[tuple[int, Any]],
    empty: str,
) -> Predictions:
    """Return the gallery of one evaluation."""

    def link(**changes: Any) -> str:
        query = {"evaluation": step, "orderBy": order} | changes
        return f"{base}/predictions?" + urlencode({k: v for k, v in query.items() if v is not None})

    current = next((sample for sample in samples if sample.index == index), None)
    if current is None and samples:
        current = samples[0]
    shown = None if current is None else current.index
    steps = sorted(evaluations)
    return Predictions(
        base=base,
        step=step,
        position=steps.index(step) if step in steps else 0,
        evaluations=[
            EvaluationLink(step=one, href=link(evaluation=one, index=shown), is_current=one == step)
            for one in steps
        ],
        order=order,
        orders=[(value, text, link(orderBy=value)) for value, text in ORDERS],
        tiles=[
            _build_tile(sample, api, link(index=sample.index), is_current=sample.index == shown)
            for sample in samples
        ],
        sample=None
        if current is None
        else _build_sample(current, samples, api=api, link=link, history=history, step=step),
        next_href="" if next_token is None else link(p=next_token),
        empty=empty,
    )


def choose_score(scores: dict[str, float]) -> tuple[str, float] | None:
    """Return the score that stands for a sample, with its name."""
    name = next((name for name in (*_MAIN_SCORES, *scores) if name in scores), None)
    return None if name is None else (name, scores[name])


def _build_tile(sample: Any, api: str, href: str, *, is_current: bool) -> Tile:
    chosen = choose_score(sample.scores)
    return Tile(
        index=sample.index,
        href=href,
        image=f"{api}/samples/{sample.index}/image" if sample.image is not None else "",
        label=f"Sample {sample.index}: {sample.question}"[:200],
        score=format_number(chosen[1]) if chosen else "",
        is_right=is_right(sample),
        is_current=is_current,
        truth=[_place(box) for box in sample.truth.boxes[:_MOST_TILE_BOXES]],
        predicted=[_place(box) for box in sample.predicted.boxes[:_MOST_TILE_BOXES]],
        text=sample.predicted.text[:60],
    )


def is_right(sample: Any) -> bool:
    """Return whether an answer counts as right."""
    chosen = choose_score(sample.scores)
    return chosen is not None and chosen[1] >= (0.5 if chosen[0] == "iou" else 1)


def _place(box: Any) -> Rectangle:
    x0, y0, x1, y1 = (100 * min(max(float(value), 0.0), 1.0) for value in box.box)
    return Rectangle(f"{x0:.2f}", f"{y0:.2f}", f"{max(x1 - x0, 0):.2f}", f"{max(y1 - y0, 0):.2f}")


def _build_sample(
    sample: Any,
    samples: Sequence[Any],
    *,
    api: str,
    link: Any,
    history: Sequence[tuple[int, Any]],
    step: int,
) -> SampleView:
    indices = [one.index for one in samples]
    position = indices.index(sample.index)
    boxes = {
        kind: [{"box": list(box.box), "phrase": box.phrase} for box in side.boxes]
        for kind, side in (("truth", sample.truth), ("predicted", sample.predicted))
    }
    return SampleView(
        index=sample.index,
        image=f"{api}/samples/{sample.index}/image" if sample.image is not None else "",
        label=f"Sample {sample.index}: {len(boxes['truth'])} true and {len(boxes['predicted'])} "
        "predicted boxes",
        boxes=json.dumps(boxes),
        question=sample.question,
        truth=sample.truth.text,
        predicted=sample.predicted.text,
        is_right=is_right(sample),
        parse=str(sample.parse or ""),
        scores=[(name, format_number(value)) for name, value in sample.scores.items()],
        history=[
            PastScore(
                step=past_step,
                score=format_number(score[1]) if (score := choose_score(past.scores)) else NOTHING,
                href=link(evaluation=past_step, index=sample.index),
                is_current=past_step == step,
            )
            for past_step, past in history
        ],
        previous_href=link(index=indices[position - 1]) if position else "",
        next_href=link(index=indices[position + 1]) if position + 1 < len(indices) else "",
    )
