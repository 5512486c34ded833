"""Templates of the page of a run: they use nothing but ``page``, and texts never become markup."""

import itertools
import types
import typing
from html.parser import HTMLParser
from typing import Any

import jinja2
import jinja2.meta
import msgspec
import pytest

from runyard.server.pages import templates
from runyard.server.pages.run import actions, start, tabs
from runyard.server.pages.views import Me

PAGES: dict[str, type[msgspec.Struct]] = {
    "run_overview.html": tabs.OverviewPage,
    "run_predictions.html": tabs.PredictionsPage,
    "run_log.html": tabs.LogTabPage,
    "run_timeline.html": tabs.TimelinePage,
    "run_flow.html": tabs.FlowPage,
    "run_files.html": tabs.FilesPage,
    "run_gone.html": tabs.GonePage,
    "run_receipt.html": actions.Receipt,
    "run_start.html": start.StartForm,
}
PARTS = [path.name for path in (templates.FOLDER / "parts").glob("_run_*.html")]
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "' autofocus onfocus='alert(1)",
    "</textarea><iframe src=//example.com></iframe>",
    "{{ 7 * 7 }}",
    "--><svg onload=alert(1)>",
)
ALLOWED = {"page", "asset", "version", "me"}
ME = Me(section="runs", org="org", name="key", role="admin", now_ms=1, is_signed_in=True)


class Elements(HTMLParser):
    """The elements of a page, and the attributes that could run a script or change its looks."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.forbidden += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        if tag == "script" and "src" not in dict(attrs):
            self.forbidden.append("script without src")


def build(kind: Any, texts: "itertools.cycle[str]") -> Any:
    """Return a value of a type in which every text is the next of ``texts``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return next(texts)
    if kind in (int, float):
        return kind(3)
    if kind is bool:
        return True
    if origin in (types.UnionType, typing.Union):
        return build(arguments[0], texts)
    if origin is list:
        return [build(arguments[0], texts) for _ in range(2)]
    if origin is tuple:
        return tuple(build(argument, texts) for argument in arguments)
    hints = typing.get_type_hints(kind)
    values = {name: build(hint, texts) for name, hint in hints.items()}
    return kind(**values)


def render(name: str, *texts: str) -> Elements:
    page = build(PAGES[name], itertools.cycle(texts))
    elements = Elements()
    elements.feed(templates.render_text(name, page, me=ME))
    return elements


@pytest.mark.parametrize("name", PAGES)
def test_a_hostile_text_adds_no_element_and_no_attribute(name: str) -> None:
    plain = render(name, "text")
    assert plain.forbidden == []
    for shift in range(len(HOSTILE)):
        hostile = render(name, *HOSTILE[shift:], *HOSTILE[:shift])
        assert hostile.forbidden == []
        # An icon's color and an empty text may depend on the value; elements in number do not.
        assert set(hostile.names) <= set(plain.names) | {"use"}
        assert hostile.names.count("script") == plain.names.count("script")
        assert hostile.names.count("img") == plain.names.count("img")


@pytest.mark.parametrize("name", [*PAGES, "run.html", *(f"parts/{name}" for name in PARTS)])
def test_a_template_uses_only_what_it_is_given(name: str) -> None:
    environment = templates.get_environment()
    source = (templates.FOLDER / name).read_text()
    assert jinja2.meta.find_undeclared_variables(environment.parse(source)) <= ALLOWED
    for forbidden in ("|safe", "Markup(", "style=", "hx-on", "js:", "| safe"):
        assert forbidden not in source
    assert len(source.splitlines()) <= 60
