"""Sample predictions of evaluations: recorded exactly once, like log lines, and read back.

A trainer chooses them (``runyard.trainer.evaluation.samples``); the lines of ``samples.jsonl``
arrive by offset, so every evaluation has its samples, whether or not there was a checkpoint. A run
keeps ``limits.SAMPLES`` bytes of them. The samples of an evaluation beyond that are left out, and
its log says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import Connection

from runyard import limits
from runyard.server.services import paging
from runyard.server.services.access.signing import Position
from runyard.server.services.context import Services
from runyard.server.services.datasets.thumbnails import ImageBytes, make_thumbnail
from runyard.server.services.datasets.thumbnails import read_image as read_stored_image
from runyard.server.services.errors import Refusal
from runyard.server.services.paging import PageRequest
from runyard.server.services.runs.runs import get as get_run
from runyard.store.tables import AnyRow
from runyard.store.telemetry import samples as rows
from vi.api.resources.runs.responses import Sample, SampleAnswer, SampleImage

LATEST = "latest"
Order = Literal["score", "index"]
ORDERS: tuple[Order, ...] = ("score", "index")
MAX_IMAGE_BYTES = 64 << 10
_Count = Annotated[int, Meta(ge=0, le=limits.MAX_COLUMN)]
_Step = Annotated[int, Meta(ge=0, le=limits.MAX_INTEGER)]


class _SamplesLine(msgspec.Struct, rename="camel", tag_field="kind", kw_only=True):
    """A line of ``samples.jsonl``; fields that this version does not know are ignored."""


class _EvaluationLine(_SamplesLine, tag="evaluation"):
    step: _Step
    time: _Step
    total: _Step
    samples: _Count


class _ImageLine(_SamplesLine, tag="image"):
    index: _Count
    png: str


class _SampleLine(_SamplesLine, tag="sample"):
    step: _Step
    index: _Count
    image: SampleImage
    question: str
    truth: SampleAnswer
    predicted: SampleAnswer
    scores: dict[str, float]
    parse: str
    score: float | None = None
    raw: str = ""
    is_cut: bool = False


_decoder: msgspec.json.Decoder[_EvaluationLine | _ImageLine | _SampleLine] = msgspec.json.Decoder(
    _EvaluationLine | _ImageLine | _SampleLine
)


class SamplePage(msgspec.Struct, rename="camel"):
    """Samples of one evaluation, or of one image in all evaluations.

    ``evaluations`` are the steps of those that have samples, ``total`` how many held-out samples
    the shown evaluation had.
    """

    items: list[Sample]
    next_page: str | None
    prev_page: str | None
    evaluations: list[int]
    step: int | None
    total: int | None


@dataclass(frozen=True, kw_only=True)
class SampleQuery:
    """Which samples a page has: those of an evaluation, or of one image (``index``), or both."""

    step: int | None = None  # None: the latest, or with ``index`` every evaluation
    index: int | None = None
    order: Order = "score"


def insert_lines(
    tx: Connection, lines: Sequence[str], *, org: str, run_id: str, attempt: int
) -> list[str]:
    """Insert the samples in shipped lines; return warnings for the run's log."""
    key = {"org": org, "run_id": run_id}
    warnings: list[str] = []
    samples: dict[int, dict[int, dict[str, Any]]] = {}  # by step and index
    images: dict[int, bytes] = {}
    for text in lines:
        try:
            line = _decoder.decode(text.encode())
            if isinstance(line, _ImageLine):
                images[line.index] = _decode_png(line.png)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            warnings.append(f"a line of samples cannot be read and is left out: {error}")
            continue
        if isinstance(line, _EvaluationLine):
            samples.pop(line.step, None)
            if warning := _insert_evaluation(tx, line, attempt=attempt, **key):
                warnings.append(warning)
        elif isinstance(line, _SampleLine):
            samples.setdefault(line.step, {})[line.index] = _build_row(line)
    rows.add_images(tx, images, **key)
    for step, found in samples.items():
        evaluation = rows.get_evaluation(tx, **key, step=step)
        if evaluation is not None and not evaluation.is_left_out:
            rows.add_samples(tx, list(found.values()), **key, step=step)
    return warnings


def _insert_evaluation(
    tx: Connection, line: _EvaluationLine, *, org: str, run_id: str, attempt: int
) -> str | None:
    is_left_out = rows.sum_sizes(tx, org=org, run_id=run_id) >= limits.SAMPLES.value
    row = {
        "org": org,
        "run_id": run_id,
        "step": line.step,
        "attempt": attempt,
        "time": line.time,
        "total": line.total,
        "sample_count": 0,
        "size_bytes": 0,
        "is_left_out": is_left_out,
    }
    rows.replace_evaluation(tx, row)
    if not is_left_out:
        return None
    return (
        f"the {line.samples} sample predictions of step {line.step} are left out: the run has "
        f"{limits.SAMPLES.value >> 20} MiB of them"
    )


def _decode_png(digits: str) -> bytes:
    data = bytes.fromhex(digits)
    if not data.startswith(b"\x89PNG") or len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"{len(data)} bytes are no PNG of at most {MAX_IMAGE_BYTES}")
    return data


def _build_row(line: _SampleLine) -> dict[str, Any]:
    names = [name for name in Sample.__struct_fields__ if name in line.__struct_fields__]
    sample = Sample(**{name: getattr(line, name) for name in names})
    document = msgspec.json.encode(sample)
    return {"number": line.index, "score": line.score, "document": document}


async def read_sample_page(
    services: Services, *, org: str, run_id: str, query: SampleQuery, page_request: PageRequest
) -> bytes:
    """Return a ``SamplePage`` as JSON.

    Raises:
        Refusal: NotFound (the run, or an evaluation at this step), InvalidPageToken.
    """
    get_run(services, org=org, run_id=run_id)
    after = paging.parse_position(services, org=org, page_request=page_request)
    begin = 0 if after is None else after[0]

    def read_items(tx: Connection) -> bytes:
        steps = list(rows.list_steps(tx, org=org, run_id=run_id))
        step = query.step
        if step is None and query.index is None:
            step = steps[-1] if steps else None
        elif step is not None and step not in steps:
            raise _no_evaluation(step, steps)
        found: Sequence[AnyRow] = ()
        if step is not None or query.index is not None:
            found = rows.list_samples(tx, org=org, run_id=run_id, step=step, number=query.index)
        if query.order == "score" and query.index is None:
            found = sorted(found, key=_rank)
        items, taken = _encode_items(found, org, run_id, begin=begin, page_request=page_request)
        total = None
        if step is not None:
            evaluation = rows.get_evaluation(tx, org=org, run_id=run_id, step=step)
            total = evaluation.total if evaluation else None
        end = begin + taken
        token = None
        if end < len(found):
            token = paging.page_token(
                services, Position(end, ""), org=org, page_request=page_request
            )
        page = SamplePage(
            items=items,
            next_page=token,
            prev_page=None,
            evaluations=steps,
            step=step,
            total=total,
        )
        return msgspec.json.encode(page)

    return await services.store.read_in_thread(read_items)


def _rank(row: AnyRow) -> tuple[bool, float, int]:
    """Return the key by which the worst sample comes first, and one without a score last."""
    return row.score is None, row.score or 0.0, row.number


def _encode_items(
    found: Sequence[AnyRow], org: str, run_id: str, *, begin: int, page_request: PageRequest
) -> tuple[list[Any], int]:
    """Return encoded samples from ``begin`` on, and how many they are."""
    items: list[Any] = []
    size_bytes = 0
    for row in found[begin : begin + page_request.size]:
        sample = msgspec.json.decode(row.document, type=Sample)
        sample.image.href = f"/workspaces/{org}/runs/{run_id}/samples/{row.number}/image"
        item = msgspec.json.encode(sample)
        size_bytes += len(item)
        if items and size_bytes > page_request.most_bytes:
            break
        items.append(msgspec.Raw(item))
    return items, len(items)


async def read_image(
    services: Services, *, org: str, run_id: str, index: int, size: int | None
) -> ImageBytes:
    """Return the image of a sample, or a thumbnail of it that is at most ``size`` pixels wide and
    high.

    Raises:
        Refusal: NotFound (the run, the sample, or its dataset is deleted).
    """
    get_run(services, org=org, run_id=run_id)
    key: Any = {"org": org, "run_id": run_id, "number": index}
    png = services.store.read(partial(rows.get_image, **key))
    if png is not None:
        return await make_thumbnail(ImageBytes.from_png(png), size)
    found = await services.store.read_in_thread(partial(rows.list_samples, **key))
    images = [msgspec.json.decode(row.document, type=Sample).image for row in found]
    sha256 = next((image.sha256 for image in images if image.sha256), None)
    if sha256 is None:
        raise Refusal(
            "NotFound",
            f"run {run_id!r} has no sample {index}; try: an index of its samples",
        )
    return await read_stored_image(services, org=org, content=sha256, size=size)


def _no_evaluation(step: int, steps: list[int]) -> Refusal:
    known = ", ".join(map(str, steps[-20:])) or "none yet"
    return Refusal(
        "NotFound", f"there are no samples of an evaluation at step {step}; there are: {known}"
    )
