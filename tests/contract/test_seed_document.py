"""Run every Python block of the document that describes ``client.runs``, with real ids.

The text is plain: no fences, no indentation to mark code, and blocks may follow each other
without a blank line. So the lines that Python parses as statements are code. A block ends where
no blank line separates two statements and the second uses no name that the first ones have
defined. If the text is absent, its blocks are skipped; ``test_runs_api.py`` makes the same calls
without it.
"""

import ast
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vi
from vi.api.resources.runs.responses import Run, RunSpec, RunStatus

DOCUMENT = Path(
    os.environ.get("RUNYARD_SEED", Path(__file__).parents[3] / "shared" / "seed" / "runs-api.txt")
)
BLOCK_COUNT = 23

HEADING = re.compile(r"(\w+)\(\)")
BELONGS_TO_STATEMENT = re.compile(r"\s+\S|(else|elif|except|finally)\b|[\])}]")


@dataclass
class Block:
    """Code of one example, and the method of its heading."""

    method: str
    lines: list[str] = field(default_factory=list)

    @property
    def code(self) -> str:
        return "\n".join(self.lines).strip() + "\n"


def read_blocks(text: str) -> list[Block]:
    """Return every code block, in order."""
    lines = text.splitlines()
    blocks: list[Block] = []
    method, number, is_continued = "", 0, False
    while number < len(lines):
        end = _statement_end(lines, number)
        if end is not None:
            statement = lines[number:end]
            touches = number > 0 and lines[number - 1].strip() != ""
            if is_continued and (not touches or _used(statement) & _defined(blocks[-1].lines)):
                blocks[-1].lines += statement
            else:
                blocks.append(Block(method, statement))
            number, is_continued = end, True
            continue
        if lines[number].strip():
            is_continued = False
            if heading := HEADING.fullmatch(lines[number].strip()):
                method = heading[1]
        elif is_continued:
            blocks[-1].lines.append("")
        number += 1
    return blocks


def _statement_end(lines: list[str], start: int) -> int | None:
    """Return the line after the statement at ``start``; None if no code begins there."""
    if not lines[start].strip() or lines[start][0].isspace():
        return None
    end = start + 1
    for number in range(start + 1, len(lines)):
        if BELONGS_TO_STATEMENT.match(lines[number]):
            end = number + 1
        elif lines[number].strip():
            break
    return end if _is_code("\n".join(lines[start:end])) else None


def _is_code(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    if len(body) != 1:
        return False
    statement = body[0]
    if isinstance(statement, ast.AnnAssign):  # "Returns: Run"
        return statement.value is not None
    if isinstance(statement, ast.Expr):  # a word, or a heading such as "list()"
        call = statement.value
        return isinstance(call, ast.Call) and (
            isinstance(call.func, ast.Attribute) or bool(call.args)
        )
    return True


def _used(lines: list[str]) -> set[str]:
    """Return the names that a statement reads and does not set."""
    return _names(lines, ast.Load) - _names(lines, ast.Store)


def _defined(lines: list[str]) -> set[str]:
    named = {
        node.asname or node.name if isinstance(node, ast.alias) else node.name
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.alias | ast.FunctionDef)
    }
    return named | _names(lines, ast.Store)


def _names(lines: list[str], context: type[ast.expr_context]) -> set[str]:
    nodes = ast.walk(ast.parse("\n".join(lines)))
    return {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }


def cases() -> list[Any]:
    """Return every block with every possible state of its run."""
    if not DOCUMENT.is_file():
        reason = f"{DOCUMENT} is not there; RUNYARD_SEED names it elsewhere"
        return [
            pytest.param(Block("absent"), "", marks=pytest.mark.skip(reason=reason), id="absent")
        ]
    found = []
    for number, block in enumerate(read_blocks(DOCUMENT.read_text()), start=1):
        for state in states(block):
            found.append(
                pytest.param(
                    block, state, id=f"{number}-{block.method}{'-' + state if state else ''}"
                )
            )
    return found


def states(block: Block) -> list[str]:
    if "run_abc123" not in block.code:
        return [""]
    if "while" in block.code:
        return ["finished"]  # on others it waits, as it should
    if "ViNotFoundError" in block.code:
        return ["ended", "unknown"]
    return {"kill": ["pending", "running"], "delete": ["ended"]}.get(
        block.method, ["finished", "running", "pending"]
    )


@pytest.fixture
def run_in(client: vi.Client, finished_run: Run, long_runs: Any) -> Callable[[str], Run]:
    """Return a run in the requested state."""

    def ended() -> Run:
        run = long_runs.pending()
        client.runs.kill(run.run_id)
        return client.runs.get(run.run_id)

    return {
        "finished": lambda: finished_run,
        "running": long_runs.running,
        "pending": long_runs.pending,
        "ended": ended,
        "unknown": lambda: Run(run_id="run_unknown"),
        "": lambda: Run(run_id="run_unused"),
    }.__getitem__


@pytest.mark.parametrize(("block", "state"), cases())
def test_a_block_of_the_seed_runs_unchanged(
    block: Block,
    state: str,
    client: vi.Client,
    run_in: Callable[[str], Callable[[], Run]],
    end_run: Callable[[vi.Client, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = run_in(state)()
    code = block.code.replace("run_abc123", run.run_id)
    if "flow_abc123" in code:
        code = code.replace("flow_abc123", client.flows.create(spec={"name": "Seed"}).flow_id)
    for project in ("project_xyz789", "project_new123"):
        if project in code:
            made = client.training_projects.create(spec={"name": "Seed", "type": "vqa"})
            code = code.replace(project, made.training_project_id)
    capsys.readouterr()

    seen: dict[str, Any] = {"client": client}
    # The project's own description.
    exec(compile(code, f"{DOCUMENT.name}, {block.method}", "exec"), seen)  # noqa: S102

    check = Check(
        client=client,
        before=run,
        state=state,
        seen=seen,
        output=capsys.readouterr().out,
        folder=tmp_path,
    )
    if block.method in ("create", "start"):
        check.created_run()
        end_run(client, seen["run"].run_id)
    elif "run_abc123" in block.code:
        getattr(check, f"{block.method}_block")(code)
    check.labels(code)


@dataclass
class Check:
    """A condition that must hold after a block has run."""

    client: vi.Client
    before: Run
    state: str
    seen: dict[str, Any]
    output: str
    folder: Path

    def labels(self, code: str) -> None:
        """Check that each ``label: {value}`` of the block was printed with the right value."""
        expected = {
            "Run ID": self.before.run_id,
            "Organization": self.before.organization_id,
            "Flow Name": self.before.spec.flow.name,
            "Schema": "v1",
            "Blocks": str(len(self.before.spec.flow.blocks)),
            "Deleted": self.before.run_id,
        }
        for label in re.findall(r'print\(f"([A-Z][A-Za-z ]+): \{', code):
            if f'    print(f"{label}' in code and f"{label}: " not in self.output:
                continue  # an optional line: its condition did not hold
            (line, *_) = [
                line for line in self.output.splitlines() if line.startswith(f"{label}: ")
            ]
            assert line.removeprefix(f"{label}: ") == expected.get(
                label, line.removeprefix(f"{label}: ")
            )

    def created_run(self) -> None:
        run = self.seen["run"]
        assert isinstance(run, Run)
        assert self.client.runs.get(run.run_id).run_id == run.run_id
        assert [condition.condition.value for condition in run.status.conditions] == ["Pending"]

    def get_block(self, code: str) -> None:
        assert isinstance(self.seen.get("run", self.before), Run)
        now = {"finished": "Succeeded", "running": "Running", "pending": "Pending"}[self.state]
        if "Status: " in code:
            assert f"Status: {now}\n" in self.output
        if ".info()" in code:
            assert self.before.run_id in self.output
            assert now in self.output
        if "get_model" in code:
            assert (self.seen["model"].model_path / "model.safetensors").is_file()
            assert self.seen["model"].model_path.is_relative_to(self.folder)

    def update_block(self, code: str) -> None:
        now = self.client.runs.get(self.before.run_id)
        assert now.etag == self.seen["run"].etag
        if "metadata" in code:
            assert now.metadata.attributes == {
                "experiment": "baseline_v2",
                "notes": "improved accuracy",
            }
        if "training_project" in code:
            assert now.spec.training_project is not None
            assert now.spec.training_project in code

    def kill_block(self, code: str) -> None:
        assert isinstance(self.seen["run"].spec.killed_at, int)
        assert "Cancelled" in self.output or "killed at" in code or self.state == "running"

    def delete_block(self, code: str) -> None:
        if "ViNotFoundError" in code:
            assert ("Run deleted successfully" in self.output) == (self.state == "ended")
            assert ("Run not found or already deleted" in self.output) == (self.state == "unknown")
        with pytest.raises(vi.ViNotFoundError):
            self.client.runs.get(self.before.run_id)


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the text is not there")
def test_every_block_of_the_seed_is_found() -> None:
    text = DOCUMENT.read_text()
    code = "\n".join(block.code for block in read_blocks(text))
    assert len(read_blocks(text)) == BLOCK_COUNT
    for word in ("run_abc123", "flow_abc123", "print(", "import "):
        assert code.count(word) == text.count(word), word


def test_the_seeds_imports_come_from_this_project() -> None:
    assert {Run.__module__, RunSpec.__module__, RunStatus.__module__} == {
        "vi.api.resources.runs.responses"
    }


def test_adjacent_blocks_are_separated_and_prose_is_left_out() -> None:
    """The parser of the text, on a different text."""
    text = """Runs

list()

List them all. Use client.runs.list() for that.

found = client.list()

for one in found:
    print(one)
import os

print(os.sep)

Parameters

limit
Returns: Page[Run]


get()

one = client.get("a")
one.show()
def twice(a):

    if a:
        return 2 * a
    else:
        return a

print(twice(1))
"""
    assert [(block.method, block.code) for block in read_blocks(text)] == [
        ("list", "found = client.list()\n\nfor one in found:\n    print(one)\n"),
        ("list", "import os\n\nprint(os.sep)\n"),
        ("get", 'one = client.get("a")\none.show()\n'),
        (
            "get",
            "def twice(a):\n\n    if a:\n        return 2 * a\n    else:\n        return a\n\n"
            "print(twice(1))\n",
        ),
    ]
