"""Templates: names that exist, escaped values, and nothing that the content policy forbids.

Each template is rendered with values made from the type of its struct: once with a plain word in
every text, and once with each hostile string. The elements and the names of their attributes must
be the same.
"""

import dataclasses
import enum
import importlib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import quote

import msgspec
import pytest
from jinja2 import meta, nodes

from runyard.server.pages import assets, templates
from runyard.server.pages.views import Me

FOLDER = Path(templates.__file__).parent
# Every template that is rendered by itself, with its struct; the others are included by these.
STRUCTS = {
    "enter.html": "",
    "new-run.html": "new_run:NewRunPage",
    "parts/_run_checkpoints.html": "run.tabs:CheckpointsPart",
    "parts/_run_gone.html": "run.tabs:GonePage",
    "parts/_run_head.html": "run.tabs:TabPage",
    "parts/_run_now.html": "run.tabs:PredictionsPage",
    "parts/_run_predictions.html": "run.tabs:PredictionsPage",
    "parts/_run_preview.html": "run.actions:PreviewPart",
    "parts/_run_receipt.html": "run.actions:Receipt",
    "parts/_run_removal.html": "run.tabs:GonePage",
    "parts/_run_timeline.html": "run.tabs:TimelinePage",
    "parts/_runs_action.html": "runs.actions:Action",
    "parts/_runs_fragment.html": "runs.table:RunsPage",
    "parts/_runs_fresh.html": "runs.table:FreshRows",
    "parts/_runs_problem.html": "runs.table:RunsProblem",
    "parts/_runs_result.html": "runs.actions:Action",
    "parts/_runs_saved.html": "runs.actions:ViewsMenu",
    "parts/_status.html": "status:StatusLine",
    "problem.html": "problems:ProblemPage",
    "run_files.html": "run.tabs:FilesPage",
    "run_flow.html": "run.tabs:FlowPage",
    "run_gone.html": "run.tabs:GonePage",
    "run_log.html": "run.tabs:LogTabPage",
    "run_overview.html": "run.tabs:OverviewPage",
    "run_predictions.html": "run.tabs:PredictionsPage",
    "run_receipt.html": "run.actions:Receipt",
    "run_start.html": "run.start:StartForm",
    "run_timeline.html": "run.tabs:TimelinePage",
    "runs.html": "runs.table:RunsPage",
}
GLOBALS = {"page", "asset", "version", "me"}
FORBIDDEN = {
    "a value that is not escaped": r"\|\s*safe\b|Markup\(|autoescape",
    "a script without a source": r"<script(?![^>]*\bsrc=)",
    "a style": r"<style|\bstyle=",
    "code in an attribute": r"\s(?:hx-on|on[a-z]+)[:=]|hx-vals=['\"]?\s*js:|javascript:",
    "a condition in a trigger": r"hx-trigger=\"[^\"]*\[",
}
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "javascript:alert(1)",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</option></select><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<style>*{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;&#x3c;script&#x3e;",
    "\u202eevil\u2066\ufeff",
    "\x00\x0b\x1b[31m",
    "<a href=//evil.example>",
    "`${alert(1)}`",
    '<math><mi//xlink:href="data:x,<script>alert(1)</script>">',
    'a=b" hx-get="//evil.example" hx-trigger="load',
]
WRAPS = ("{}", "x{}", "{}\n", "'{}", '"{}', "/{}", "&{}", " {} ", '="{}', "\\{}")
# Fields that hold addresses, which views build from quoted parts.
URL_NAME = re.compile(r"url$|href$|^image$|^api$|^base$|query|^orders$")


def list_templates() -> list[str]:
    return sorted(templates.get_environment().list_templates())


def read_source(name: str) -> str:
    return (templates.FOLDER / name).read_text()


def list_rendered() -> set[str]:
    """Return the templates that some module renders by itself."""
    sources = [path.read_text() for path in FOLDER.rglob("*.py")]
    return {name for text in sources for name in re.findall(r'"([\w/-]+\.html)"', text)} - {
        "base.html"
    }


class Maker:
    """Makes values of a type: every text is ``text``, and ``variant`` varies the rest."""

    def __init__(self, text: str, variant: int) -> None:
        self.text, self.variant = text, variant

    def make(self, kind: Any, name: str = "") -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is typing.Annotated:
            return self.make(arguments[0], name)
        if origin is Literal:
            return arguments[self.variant % len(arguments)]
        if origin in (types.UnionType, typing.Union):
            given = [one for one in arguments if one is not type(None)]
            if len(given) < len(arguments) and self.variant == 1:
                return None
            return self.make(given[self.variant % len(given)], name)
        if kind is str or kind is Any:
            return f"/ui/x?q={quote(self.text)}" if URL_NAME.search(name) else self.text
        simple = {bool: self.variant != 1, int: self.variant * 3, float: 0.5, bytes: b"x"}
        if kind in simple:
            return simple[kind]
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return list(kind)[self.variant % len(kind)]
        return self._make_container(kind, origin, arguments, name)

    def _make_container(self, kind: Any, origin: Any, arguments: Any, name: str) -> Any:
        count = 0 if self.variant == 1 else 2
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            return tuple(self.make(one, name) for one in arguments)
        if origin in (dict, typing.Mapping) or (origin and issubclass(origin, typing.Mapping)):
            return {self.text: self.make(arguments[1], name)} if count else {}
        if origin in (list, tuple, frozenset) or (origin and issubclass(origin, Sequence)):
            made = [self.make(arguments[0], name) for _ in range(count)]
            return tuple(made) if origin is tuple else made
        hints = get_type_hints(kind, include_extras=True)
        if issubclass(kind, msgspec.Struct):
            names = kind.__struct_fields__
        elif issubclass(kind, tuple):
            names = kind._fields
        elif dataclasses.is_dataclass(kind):
            names = tuple(field.name for field in dataclasses.fields(kind))
        else:
            raise AssertionError(f"no value of {kind} can be made; simplify the view")
        return kind(**{one: self.make(hints[one], one) for one in names})


class Outline(HTMLParser):
    """The elements of a page with the names of their attributes; and what no page may have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.faults: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attributes)))
        for name, value in attributes:
            is_code = name.startswith("on") or name in ("style", "srcdoc", "hx-on")
            address = (value or "").strip().lower()
            is_address = name in ("href", "src", "action", "formaction", "hx-get", "hx-post")
            if is_code or (is_address and not re.match(r"/(?!/)|\?|#|$|https?:", address)):
                self.faults.append(f"{tag} {name}={value!r}")

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", ()))


def render(name: str, text: str, variant: int) -> Outline:
    module, _, struct = STRUCTS[name].partition(":")
    page = None
    if struct:
        found = importlib.import_module(f"runyard.server.pages.{module}")
        page = Maker(text, variant).make(getattr(found, struct))
    me = Me(section="runs", org=text, name=text, role="admin", is_signed_in=True)
    return Outline(templates.render_text(name, page, me=me))


def iter_hostile() -> Iterator[str]:
    """Yield each hostile string, and then all of them, in each of their surroundings, as one."""
    yield from HOSTILE
    yield "".join(wrap.replace("{}", text) for wrap in WRAPS for text in HOSTILE)


@pytest.mark.parametrize("name", list_templates())
def test_a_template_uses_no_names_but_its_own(name: str) -> None:
    parsed = templates.get_environment().parse(read_source(name))
    imported = {
        one[1] if isinstance(one, tuple) else one
        for found in parsed.find_all(nodes.FromImport)
        for one in found.names
    }
    assert meta.find_undeclared_variables(parsed) - imported <= GLOBALS


def test_no_source_has_what_the_content_policy_forbids() -> None:
    sources = {path: path.read_text() for path in templates.FOLDER.rglob("*.html")}
    for path, text in sources.items():
        for what, pattern in FORBIDDEN.items():
            assert not re.search(pattern, text), f"{path.name} has {what}"
    modules = list(FOLDER.rglob("*.py"))
    assert not [path for path in modules if re.search(r"\bMarkup\b", path.read_text())]
    scripts = list(assets.FOLDER.glob("*.js"))
    assert not [
        path.name
        for path in scripts
        if re.search(r"\.style\.cssText|setAttribute\(.style|eval\(|new Function", path.read_text())
    ]


def test_every_rendered_template_is_tested() -> None:
    assert list_rendered() == set(STRUCTS)


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_hostile_texts_add_no_element_and_no_attribute(name: str) -> None:
    assert len(HOSTILE) * len(WRAPS) == 200
    for variant in range(3):
        plain = render(name, "word", variant)
        assert not plain.faults
    expected = render(name, "word", 0).elements
    assert len(expected) > 1
    for text in iter_hostile():
        found = render(name, text, 0)
        assert (found.elements, found.faults) == (expected, []), text


def test_parts_are_short() -> None:
    for path in (templates.FOLDER / "parts").glob("*.html"):
        assert path.name.startswith("_")
        assert len(path.read_text().splitlines()) <= 60, path.name
