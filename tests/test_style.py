"""The figures of the style report are right, and its limits only fall."""

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest
from style import docs, figures, limits, names, sources, structure

ROOT = Path(__file__).parents[1]

LIMITS = """\
[limits]
participles = { limit = 8, target = 3, reason = "a name says what calling it does" }
import_cycles = { limit = 1, target = 0, reason = "modules move together" }
[complexity_exceptions]
"app.py:dispatch" = 20
"app.py:gone" = 30
[allowed_identifiers]
"app.py:cure" = "a field of the wire"
"""


def measure(folder: Path, **files: str) -> Any:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return sources.measure_folders([folder])


def make_function(name: str, complexity: int) -> Any:
    return sources.Function(name, "src/app.py", 7, 10, complexity, is_property=False)


@pytest.mark.parametrize(
    "name", ["is_default", "set_default", "default_factory", "segfault", "believe", "storyteller"]
)
def test_standard_words_are_not_banned(name: str) -> None:
    assert not names.has_banned_word(name)


@pytest.mark.parametrize(
    "name", ["is_told", "TellTrainer", "faults", "_PICTURES", "taken_up", "goes_on", "lived_ms"]
)
def test_words_of_the_former_dialect_are_banned(name: str) -> None:
    assert names.has_banned_word(name)


def test_participles_are_recognized() -> None:
    candidates = ["offered", "_taken_by", "need", "read", "embed_images"]
    assert [name for name in candidates if names.is_participle(name)] == ["offered", "_taken_by"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a and b or [x for x in y if x]", 1),
        ("if a:\n    pass\nelif b:\n    pass\nelse:\n    pass", 3),
        ("for x in y:\n    while z:\n        pass\nelse:\n    pass", 4),
        ("try:\n    pass\nexcept A:\n    pass\nexcept B:\n    pass\nfinally:\n    pass", 3),
        ("match a:\n    case 1:\n        x\n    case 2:\n        y\n    case _:\n        z", 3),
        ("def inner():\n    if a:\n        pass", 3),
    ],
)
def test_complexity_counts_what_ruff_counts(body: str, expected: int) -> None:
    tree = ast.parse("def f():\n" + textwrap.indent(body, "    "))
    assert structure.measure_complexity(tree.body[0]) == expected


def test_names_of_functions_leave_out_properties_and_dunder_methods(tmp_path: Path) -> None:
    report = measure(
        tmp_path,
        shapes="""
        class Shape:
            def __init__(self): ...
            @property
            def area(self): ...
            def offered(self): ...
            def color_of(self): ...
        """,
    )
    offenders = report.list_offenders()
    assert [str(entry) for entry in offenders["participles"]] == [
        f"{tmp_path}/shapes.py:6: Shape.offered"
    ]
    assert [entry.text for entry in offenders["one_word_functions"]] == ["Shape.offered"]
    assert [entry.text for entry in offenders["x_of"]] == ["Shape.color_of"]


def test_docstrings_that_open_with_a_question_are_found(tmp_path: Path) -> None:
    report = measure(tmp_path, a='"""What this is."""\n\ndef f():\n    """Whatever."""\n')
    assert [entry.text for entry in report.list_offenders()["question_docstrings"]] == [
        "What this is."
    ]
    assert report.compute_figures()["question_docstrings"] == 50


def test_generated_twins_are_left_out(tmp_path: Path) -> None:
    report = measure(
        tmp_path,
        _async="class Client: ...",
        _sync="class Client: ...",
        alone_sync="class Other: ...",
    )
    assert [entry.text for entry in report.classes] == ["Client", "Other"]


def test_cycles_count_imports_in_functions_but_not_those_for_types(tmp_path: Path) -> None:
    report = measure(
        tmp_path,
        app__a="def f():\n    from . import b\n",
        app__b="from app.a import f\n",
        app__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import app.d\n",
        app__d="import app.c\n",
    )
    assert report.cycles == [["app.a", "app.b"]]


def test_code_lines_are_without_comments_docstrings_and_blank_lines(tmp_path: Path) -> None:
    assert measure(tmp_path, a='"""One\n\ntwo."""\n\n# Why.\nx = (\n    1\n)\n').code_lines == 3


def test_only_prose_and_list_items_are_sentences() -> None:
    page = """\
# A title

One two
three. Four `a b c` five.

| a | b |

```sh
make it
```

- six
- [7 8](x.md)
"""
    assert list(docs.iterate_sentences(page)) == [
        (3, "One two three."),
        (3, "Four code five."),
        (12, "six"),
        (13, "7 8"),
    ]


def test_a_figure_above_its_limit_names_each_offender() -> None:
    offenders = {
        "participles": [figures.SourceLine("src/app.py", 3, "offered")],
        "import_cycles": [],
    }
    measured = {"participles": 9.0, "import_cycles": 0}
    messages = limits.find_violations(
        measured, offenders, [make_function("f", 16)], limits.read_limits(LIMITS)
    )
    assert messages == [
        "participle function names, %: 9, the limit is 8 (a name says what calling it does)",
        "  src/app.py:3: offered",
        "src/app.py:7: f has complexity 16, the limit is 15",
    ]


def test_an_exception_holds_for_its_function_and_its_complexity() -> None:
    table, measured = limits.read_limits(LIMITS), {"participles": 0, "import_cycles": 0}
    assert not limits.find_violations(measured, {}, [make_function("dispatch", 20)], table)
    assert limits.find_violations(measured, {}, [make_function("dispatch", 21)], table)


def test_lowering_never_raises_a_limit_or_passes_the_target() -> None:
    lowered = limits.lower_limits(
        LIMITS, {"participles": 2.5, "import_cycles": 4}, [make_function("dispatch", 17)]
    )
    table = limits.read_limits(lowered)
    assert [row.limit for row in table.rows] == [3, 1]
    assert table.complexity_exceptions == {"app.py:dispatch": 17}
    assert list(table.allowed_identifiers) == ["app.py:cure"]


def test_an_identifier_that_the_wire_fixes_is_allowed_in_its_file() -> None:
    entries = [
        figures.SourceLine("src/app.py", 1, "cure"),
        figures.SourceLine("src/other.py", 1, "cure"),
    ]
    report = limits.remove_allowed(
        sources.Report(banned=entries), limits.read_limits(LIMITS).allowed_identifiers
    )
    assert report.banned == entries[1:]


def test_each_limit_has_a_figure_and_a_reason() -> None:
    for row in limits.read_limits(limits.LIMITS.read_text()).rows:
        assert row.metric in figures.TITLES
        assert row.limit >= row.target
        assert row.reason
