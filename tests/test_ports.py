"""Controller and supervisor have effects only through their ports."""

import ast
from pathlib import Path

import pytest

import runyard

ROOT = Path(next(iter(runyard.__path__)))
MODULES = sorted(
    path
    for part in ("controller", "executors", "supervisor")
    for path in (ROOT / part).rglob("*.py")
)
PURE = {ROOT / "controller" / "decide.py", ROOT / "supervisor" / "step.py"}
EFFECTS = {
    "os",
    "signal",
    "subprocess",
    "threading",
    "socket",
    "select",
    "pathlib",
    "random",
    "uuid",
    "logging",
}


def list_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_only_the_clock_port_reads_the_time(path: Path) -> None:
    assert not list_imports(path) & {"time", "datetime"}


@pytest.mark.parametrize("path", sorted(PURE), ids=lambda path: path.name)
def test_deciding_modules_have_no_effects(path: Path) -> None:
    assert not list_imports(path) & EFFECTS


def test_no_process_is_started_through_a_shell() -> None:
    calls = [
        keyword
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "shell"
    ]
    assert calls == []
