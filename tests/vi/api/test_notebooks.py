"""Documents in notebooks and data frames: cards, tables, one line in a shell, rows."""

import math
import struct
import sys
import types
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

import vi
from vi._text import to_single_line
from vi.api import _html
from vi.api._display import CONDITION_SHAPES
from vi.api.resources.datasets.responses import Dataset
from vi.api.resources.runs.responses import MetricPoint, Run, Sample
from vi.api.resources.runs.series import MetricSeries, MetricSeriesList, SeriesColumns

RunDocument = Callable[..., dict[str, Any]]

TAGS = {"div", "table", "tr", "td", "th", "b", "br", "span", "svg", "title", "rect", "path"}
ATTRIBUTES = {"style", "role", "aria-label", "aria-hidden", "colspan", "width", "height", "x"}
ATTRIBUTES |= {
    "y",
    "stroke-dasharray",
    "fill",
    "d",
    "stroke",
    "stroke-width",
    "stroke-linecap",
    "viewbox",
}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload='alert(1)'>",
    "'-alert(1)-'",
    "javascript:alert(1)",
    "</td></table></div><iframe src=//evil.test>",
    "&lt;b&gt; &amp;#60;",
    "{{7*7}} ${7*7} $x^2$",
    "a\x00b\x1b[31mc\x07",
    "\u202egnp.exe \u2066",
    "x" * 100_000,
    "☃🙈" * 5000,
    "\n\n# heading\n* item",
]


class MarkupCheck(HTMLParser):
    """Parser that accepts only the elements and attributes that cards and tables use."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_markup(markup: str) -> str:
    """Check size and structure; return the text that people see."""
    assert len(markup.encode()) <= _html.MAX_BYTES
    check = MarkupCheck()
    check.feed(markup)
    check.close()
    assert check.open == []
    return " ".join(check.texts)


@pytest.fixture
def run(run_document: RunDocument) -> Run:
    document = run_document(
        {"condition": "Pending", "reason": "Queued", "lastTransitionTime": 1767225600000},
        {
            "condition": "Running",
            "reason": "Training",
            "message": "first evaluation done",
            "lastTransitionTime": 1767225660000,
        },
        progress={
            "step": 300,
            "totalSteps": 1000,
            "epoch": 1.5,
            "loss": 0.52,
            "metricName": "iou",
            "metric": 0.7,
            "secondsLeft": 200.0,
        },
    )
    document["metadata"]["attributes"] = {"owner": "kim"}
    return msgspec.convert(document, Run)


def test_a_run_is_one_line_in_a_shell(run: Run) -> None:
    assert repr(run) == (
        "Run('r-1', name='digits', Running (Training), step 300/1000, loss 0.5200, iou 0.7000, "
        "3 min 20 s left)"
    )
    assert repr(Run()) == "Run('', name='Untitled', no condition yet)"


def test_a_run_is_a_card_in_a_notebook(run: Run) -> None:
    text = check_markup(run._repr_html_())
    assert "● Running" in " ".join(text.split())
    for shown in ("digits", "r-1", "Training", "first evaluation done", "step 300/1000", "kim"):
        assert shown in text
    assert "3 min 20 s left" in text
    assert "Pending 1 min 0 s" in text


def test_findings_of_a_run_are_on_its_card_and_in_its_summary(
    run_document: RunDocument, capsys: pytest.CaptureFixture[str]
) -> None:
    suggestion = {"text": "train <longer>", "setting": "settings.seed", "value": 3}
    finding = {"code": "NothingLearned", "message": "none learned", "suggestions": [suggestion]}
    run = msgspec.convert(run_document("Succeeded", findings=[finding]), Run)
    run.info()
    for text in (check_markup(run._repr_html_()), capsys.readouterr().out):
        for shown in ("Finding", "none learned", "train <longer> (--set settings.seed=3)"):
            assert shown in text


@pytest.mark.parametrize("condition", [*CONDITION_SHAPES, "Hibernating"])
def test_every_condition_has_a_word_and_a_shape(run_document: RunDocument, condition: str) -> None:
    text = check_markup(msgspec.convert(run_document(condition), Run)._repr_html_())
    assert f"{CONDITION_SHAPES.get(condition, '○')} {condition}" in " ".join(text.split())


def test_the_shapes_differ() -> None:
    assert len(set(CONDITION_SHAPES.values())) == len(CONDITION_SHAPES) == 6


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
@pytest.mark.parametrize("color", _html.CONDITION_COLORS.values())
def test_the_colors_of_conditions_are_readable_on_light_and_dark(
    color: str, background: str
) -> None:
    lighter, darker = sorted(map(measure_luminance, (color, background)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3


def measure_luminance(color: str) -> float:
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(run_document: RunDocument, text: str) -> None:
    document = run_document(
        {"condition": text, "reason": text, "message": text, "lastTransitionTime": 1},
        progress={"step": 1, "totalSteps": 2, "metricName": text, "metric": 0.5},
        run_id=text,
    )
    document["spec"]["flow"]["name"] = text
    document["spec"]["trainingProject"] = text
    document["metadata"]["attributes"] = {text: text, **{f"{n}{text}": text for n in range(99)}}
    hostile = msgspec.convert(document, Run)
    assert to_single_line(text[:20]) in check_markup(hostile._repr_html_())
    assert repr(hostile).isprintable()
    check_markup(_html.render_table([hostile._to_table_row()] * 1000, title=text))
    check_markup(MetricPoint(step=1, epoch=1, time=1, attempt=1, values={text: 1})._repr_html_())
    check_markup(_html.render_sparkline([1, 2], label=text))


def test_a_page_of_runs_is_a_table_that_counts_what_it_leaves_out(
    key: str, server: Any, run_document: RunDocument
) -> None:
    items = [run_document("Running", run_id=f"r-{number}") for number in range(500)]
    server.answers({"items": items, "nextPage": "t"})
    page = vi.Client(key, "lab", transport=server.transport).runs.list()
    text = check_markup(page._repr_html_())
    assert "500 items, and further pages" in text
    assert "r-0" in text
    assert "rows more" in text
    assert repr(page) == "PaginatedResponse(500 items, next_page='t')"


def test_a_page_of_other_documents_is_a_table_too(key: str, server: Any) -> None:
    server.answers({"items": [{"datasetId": "d-1", "name": "<b>"}]})
    page = vi.Client(key, "lab", transport=server.transport).datasets.list()
    text = check_markup(page._repr_html_())
    assert "1 item" in text
    assert "d-1" in text
    server.answers({"items": []})
    assert "0 items" in check_markup(
        vi.Client(key, "lab", transport=server.transport).datasets.list()._repr_html_()
    )


def test_a_metric_point_names_its_values() -> None:
    point = MetricPoint(step=10, epoch=0.5, time=1, attempt=1, values={"validation/iou": 1 / 3})
    assert repr(point) == "MetricPoint(step=10, epoch=0.5, validation/iou=0.333333)"
    assert "0.333333" in check_markup(point._repr_html_())


@pytest.mark.parametrize("text", ["a cat", *HOSTILE])
def test_a_sample_shows_both_answers_and_their_boxes(text: str) -> None:
    boxes = [{"box": [0.1, 0.2, 0.5, 9.0], "phrase": text}] * 100
    answer = {"text": text, "boxes": boxes}
    document = {
        "index": 3,
        "step": 100,
        "image": {"width": 640, "height": 480, "filename": text},
        "question": text,
        "truth": answer,
        "predicted": answer,
        "scores": {"iou": 0.5},
        "parse": text,
        "score": 0.5,
    }
    sample = msgspec.convert(document, Sample)
    shown = check_markup(sample._repr_html_())
    assert "Sample 3, step 100" in shown
    assert "100 true, 100 predicted (dashed)" in shown
    assert repr(sample).isprintable()
    check_markup(_html.render_table([sample._to_table_row()], title="samples"))


@pytest.mark.parametrize("key", ["loss", *HOSTILE])
def test_series_are_curves_with_their_last_value(key: str) -> None:
    def encode(kind: str, values: list[float]) -> str:
        return b64encode(struct.pack(f"<{len(values)}{kind}", *values)).decode()

    steps, values = [float(step) for step in range(500)], [1 / (step + 1) for step in range(500)]
    column = encode("f", values)
    series = MetricSeries(
        run_id="r-1",
        key=key,
        bucket_steps=2,
        count=500,
        total=1000,
        first_step=0,
        last_step=999,
        from_step=0,
        next=9,
        time_start=0,
        columns=SeriesColumns(
            step=encode("d", steps), time=column, epoch=column, min=column, max=column, last=column
        ),
    )
    shown = check_markup(series._repr_html_())
    assert "1 series" in shown and "0.002" in shown and "0 to 999" in shown
    assert repr(series).isprintable() and "1,000 steps, last=0.002" in repr(series)
    many = MetricSeriesList([series] * 40, ["loss"])
    assert "rows more" in check_markup(many._repr_html_())
    assert repr(many).isprintable()


def test_a_sparkline_has_gaps_and_keeps_the_peak() -> None:
    spike: list[float | None] = [0.0] * 10_000
    spike[5000] = 9.0
    markup = _html.render_sparkline(spike, label="loss")
    check_markup(markup)
    assert " 2.0L" in markup  # the peak touches the upper edge
    with_gaps = _html.render_sparkline([1, None, 2, math.nan, 3, 4], label="loss")
    assert with_gaps.count("M") == 3
    assert "no values yet" in _html.render_sparkline([None, math.inf], label="loss")
    check_markup(_html.render_sparkline([5.0], label="loss"))


def test_to_dict_is_the_document_of_the_wire(run: Run) -> None:
    document = run.to_dict()
    assert document["runId"] == "r-1"
    assert document["status"]["conditions"][1]["condition"] == "Running"
    assert msgspec.json.decode(msgspec.json.encode(run)) == document


def test_a_page_becomes_a_data_frame(key: str, server: Any, run_document: RunDocument) -> None:
    documents = [run_document("Pending", run_id="r-1"), run_document("Failed", run_id="r-2")]
    documents[1]["metadata"]["attributes"] = {"owner": "kim"}
    server.answers({"items": documents})
    frame = vi.Client(key, "lab", transport=server.transport).runs.list().to_pandas()
    assert list(frame["run_id"]) == ["r-1", "r-2"]
    assert list(frame["condition"]) == ["Pending", "Failed"]
    assert str(frame["time_created"].dt.tz) == "UTC"
    assert frame["attributes.owner"][1] == "kim"
    server.answers({"items": [{"datasetId": "d-1", "metadata": {"timeCreated": 1767225600000}}]})
    other = vi.Client(key, "lab", transport=server.transport).datasets.list().to_pandas()
    assert other["metadata.time_created"][0].year == 2026


def test_a_library_is_imported_only_when_a_frame_is_requested(
    key: str, server: Any, run_document: RunDocument, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers({"items": [run_document("Pending")]})
    page = vi.Client(key, "lab", transport=server.transport).runs.list()
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r"this needs polars.*pip install polars"):
        page.to_polars()
    polars = types.ModuleType("polars")
    polars.DataFrame = lambda columns, strict: (columns, strict)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polars", polars)
    columns, _ = page.to_polars()
    assert columns["run_id"] == ["r-1"]


def test_a_row_of_a_document_without_special_columns_is_flat() -> None:
    record = Dataset(name="shelf")._to_record()
    assert record["name"] == "shelf"
    assert not any(isinstance(value, dict) for value in record.values())
