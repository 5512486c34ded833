"""Check that the docs list every setting, reason, event and exit code, and that links resolve."""

import ast
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

import vi
from runyard import rundir
from runyard.cli.main import cli
from runyard.server.services.events import MEANINGS as EVENT_MEANINGS
from runyard.server.services.runs.conditions import MEANINGS, REASONS
from runyard.settings import PREFIX, Settings
from runyard.supervisor import main as supervisor

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LIFECYCLE = (ROOT / "docs/run-lifecycle.md").read_text()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SOURCE_PATH = re.compile(r"`((?:src|scripts|examples|tests|docs)/[\w./-]+)`")


def find_constants(module: Any, prefix: str) -> dict[str, int]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith(prefix) and isinstance(value, int)
    }


def remove_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def find_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", remove_code(page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_each_setting_has_its_row(setting: Any) -> None:
    value = (
        str(setting.default).lower() if isinstance(setting.default, bool) else str(setting.default)
    )
    default = f"`{value}`" if value else "empty"
    row = f"| `{PREFIX}{setting.name.upper()}` | {default} | {setting.metadata['help']} |"
    assert row in (ROOT / "docs/settings.md").read_text()


def test_every_setting_in_the_docs_exists() -> None:
    known = {PREFIX + setting.name.upper() for setting in fields(Settings)}
    for name in ("docs/settings.md", "docs/run-lifecycle.md", "README.md"):
        # The text after the prefix is a name, not a placeholder such as <NAME>.
        assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", (ROOT / name).read_text())) <= known, name


@pytest.mark.parametrize(
    ("condition", "reason", "meaning"),
    [
        (kind.value, reason, text)
        for kind, reasons in MEANINGS.items()
        for reason, text in reasons.items()
    ],
)
def test_each_reason_is_listed_with_its_condition_and_meaning(
    condition: str, reason: str, meaning: str
) -> None:
    assert f"\n| {condition} | `{reason}` | {meaning} |\n" in LIFECYCLE


def test_every_listed_reason_exists() -> None:
    listed = re.findall(
        r"^\| (Pending|Running|Succeeded|Failed|Error|Cancelled) \| `(\w+)` \|",
        LIFECYCLE,
        flags=re.M,
    )
    assert set(listed) == {
        (kind.value, reason) for kind, reasons in REASONS.items() for reason in reasons
    }


@pytest.mark.parametrize(("event", "names"), list(rundir.EVENTS.items()))
def test_each_event_is_listed_with_its_fields(event: str, names: tuple[str, ...]) -> None:
    assert f"| `{event}` | {', '.join(f'`{name}`' for name in names)} |" in LIFECYCLE


@pytest.mark.parametrize(
    ("kind", "what", "meaning"),
    [
        (kind, what, text)
        for kind, events in EVENT_MEANINGS.items()
        for what, text in events.items()
    ],
)
def test_each_event_of_an_organization_is_listed(kind: str, what: str, meaning: str) -> None:
    page = (ROOT / "docs/events.md").read_text()
    assert f"\n| `{kind}` | `{what}` | {meaning} |\n" in page


@pytest.mark.parametrize(
    "code",
    [*find_constants(rundir, "EXIT_").values(), *find_constants(supervisor, "EXIT_").values()],
)
def test_each_exit_code_is_listed(code: int) -> None:
    assert re.search(rf"^\| {code} \| ", LIFECYCLE, flags=re.M)


@pytest.mark.parametrize(
    "name",
    [
        value
        for value in vars(rundir).values()
        if isinstance(value, str) and value.endswith((".json", ".jsonl", ".log", ".lock"))
    ],
)
def test_each_file_of_an_attempt_is_listed(name: str) -> None:
    assert re.search(rf"`(checkpoints/<name>/)?{re.escape(name)}`", LIFECYCLE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_internal_links_resolve(page: Path) -> None:
    for link in LINK.findall(remove_code(page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in find_anchors(target), (
            f"{page.name} links to {link}, which has no such heading"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    for name in SOURCE_PATH.findall(page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    known = {
        name
        for path in ROOT.glob("tests/**/test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= known


def find_linked_pages(page: Path) -> list[Path]:
    links = LINK.findall(remove_code(page.read_text()))
    return [(page.parent / link.partition("#")[0]).resolve() for link in links if "://" not in link]


def test_the_index_links_every_page_once() -> None:
    index = ROOT / "docs/index.md"
    linked = find_linked_pages(index)
    assert sorted(linked) == sorted({page.resolve() for page in PAGES} - {index.resolve()})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_opens_with_one_title(page: Path) -> None:
    titles = re.findall(r"^# .+", remove_code(page.read_text()), flags=re.M)
    assert len(titles) == 1
    assert page.read_text().startswith(titles[0])


def read_glossary() -> list[list[str]]:
    rows = re.findall(
        r"^\| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs/glossary.md").read_text(), flags=re.M
    )
    return [list(row) for row in rows if row[0] != "word"]


def test_the_glossary_has_each_word_once_and_in_order() -> None:
    words = [word.lower() for word, _, _ in read_glossary()]
    assert words == sorted(set(words))


@pytest.mark.parametrize("row", read_glossary(), ids=lambda row: row[0])
def test_each_word_has_one_sentence_and_a_page_that_uses_it(row: list[str]) -> None:
    word, meaning, link = row
    assert not meaning.endswith(".") and ". " not in meaning
    [target] = LINK.findall(link)
    page = ROOT / "docs" / target.partition("#")[0]
    assert word.lower() in page.read_text().lower()


def test_each_target_of_the_makefile_selects_tests_that_exist() -> None:
    lines = re.findall(r"scripts/test (.+)", (ROOT / "Makefile").read_text().replace("\\\n", " "))
    assert lines
    for line in lines:
        modules = [ROOT / word for word in line.split() if word.startswith("tests/")]
        assert all(module.exists() for module in modules), line
        if selected := re.search(r"-k (\w+)", line):
            names = re.findall(r"def (test_\w+)", "".join(module.read_text() for module in modules))
            assert any(selected[1] in name for name in names), line


TOUR = re.findall(
    r"^\| .+ \| (?:`(client\..+)`)? ?\| `(runyard .+)` \|$",
    (ROOT / "docs/tour.md").read_text(),
    re.M,
)


@pytest.mark.parametrize("line", [command for _, command in TOUR])
def test_each_command_of_the_tour_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
        context = click.Context(command, parent=context)
    command.make_parser(context).parse_args(words)


@pytest.mark.parametrize("line", [python for python, _ in TOUR if python])
def test_each_call_of_the_tour_has_these_arguments(line: str) -> None:
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    with vi.Client("dtvi_" + "a" * 98, "org", endpoint="http://127.0.0.1:9") as client:
        method = eval(ast.unparse(call.func), {"client": client})  # noqa: S307 - our own page
    named = {str(keyword.arg): None for keyword in call.keywords}
    inspect.signature(method).bind_partial(*call.args, **named)
