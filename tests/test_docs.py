"""The documentation tells every setting, reason, event and exit code, and what it links to exists."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from runyard import rundir
from runyard.server.services.runs.conditions import MEANINGS, REASONS
from runyard.settings import PREFIX, Settings
from runyard.supervisor import main as supervisor

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LIFECYCLE = (ROOT / "docs/run-lifecycle.md").read_text()
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SOURCE_PATH = re.compile(r"`((?:src|scripts|examples|tests|docs)/[\w./-]+)`")


def constants(module: Any, prefix: str) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.startswith(prefix) and isinstance(value, int)}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_each_setting_has_its_row(setting: Any) -> None:
    value = str(setting.default).lower() if isinstance(setting.default, bool) else str(setting.default)
    default = f"`{value}`" if value else "empty"
    row = f"| `{PREFIX}{setting.name.upper()}` | {default} | {setting.metadata['help']} |"
    assert row in (ROOT / "docs/settings.md").read_text()


def test_no_setting_is_told_that_does_not_exist() -> None:
    known = {PREFIX + setting.name.upper() for setting in fields(Settings)}
    for name in ("docs/settings.md", "docs/run-lifecycle.md", "README.md"):
        # What stands after the prefix is a name, not a placeholder such as <NAME>.
        assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", (ROOT / name).read_text())) <= known, name


@pytest.mark.parametrize(
    ("condition", "reason", "meaning"),
    [(kind.value, reason, text) for kind, reasons in MEANINGS.items() for reason, text in reasons.items()],
)
def test_each_reason_is_told_with_its_condition_and_meaning(condition: str, reason: str, meaning: str) -> None:
    assert f"\n| {condition} | `{reason}` | {meaning} |\n" in LIFECYCLE


def test_no_reason_is_told_that_does_not_exist() -> None:
    told = re.findall(r"^\| (Pending|Running|Succeeded|Failed|Error|Cancelled) \| `(\w+)` \|", LIFECYCLE, flags=re.M)
    assert set(told) == {(kind.value, reason) for kind, reasons in REASONS.items() for reason in reasons}


@pytest.mark.parametrize(("event", "names"), list(rundir.EVENTS.items()))
def test_each_event_is_told_with_its_fields(event: str, names: tuple[str, ...]) -> None:
    assert f"| `{event}` | {', '.join(f'`{name}`' for name in names)} |" in LIFECYCLE


@pytest.mark.parametrize("code", [*constants(rundir, "EXIT_").values(), *constants(supervisor, "EXIT_").values()])
def test_each_exit_code_is_told(code: int) -> None:
    assert re.search(rf"^\| {code} \| ", LIFECYCLE, flags=re.M)


@pytest.mark.parametrize(
    "name",
    [
        value
        for value in vars(rundir).values()
        if isinstance(value, str) and value.endswith((".json", ".jsonl", ".log", ".lock"))
    ],
)
def test_each_file_of_an_attempt_is_told(name: str) -> None:
    assert re.search(rf"`(checkpoints/<name>/)?{re.escape(name)}`", LIFECYCLE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_internal_links_resolve(page: Path) -> None:
    for link in LINK.findall(without_code(page.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in SOURCE_PATH.findall(page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    known = {
        name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= known


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
        if "://" not in link
    }
    beginnings = {ROOT / "README.md", *ROOT.glob("docs/decisions/*.md")}
    lonely = [page.name for page in PAGES if page not in beginnings and page.resolve() not in linked]
    assert not lonely
