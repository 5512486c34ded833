"""Read the fenced blocks of a page, and execute them as a reader would, in order.

A reader has a terminal, a Python prompt, a home folder and a folder to work in. Commands are typed
one after another into the same bash, so that what a page exports stays exported; Python blocks run
in one process. A command that a page leaves running, such as ``runyard up``, runs until the page
ends and then gets Ctrl-C.

A comment before a block, which no reader sees, says why it is not executed here:

- ``<!-- not run: REASON -->``, with one of ``REASONS``;
- ``<!-- run by tests/... -->``: that module reads the page and executes or shows the block.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHELL, CONSOLE, PYTHON = "sh", "console", "python"
REASONS = (
    "installs packages",
    "downloads a model",
    "needs a program that the tests do not have",
)
SHOWN_END_S = 60.0
COMMAND_TIMEOUT_S = 240.0
MARK = "--end of the block--"
# Executes the files whose paths it reads, all in one namespace, and reports after each.
PROMPT = f"""
import sys, traceback
namespace = {{"__name__": "__main__"}}
for line in sys.stdin:
    code = 0
    try:
        exec(compile(open(line.strip()).read(), line.strip(), "exec"), namespace)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    print("{MARK}", code, flush=True)
"""

Fill = Callable[["Reader"], str]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the comment before it."""

    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def module(self) -> str:
        """The test module that executes the block instead."""
        found = re.fullmatch(r"run by (tests/\S+\.py)", self.mark)
        return found[1] if found else ""

    @property
    def reason(self) -> str:
        """Why nothing executes the block."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else ""


@dataclass(frozen=True)
class Shown:
    """A command of a page and the output that the page shows for it."""

    command: str
    output: str = ""


@dataclass(frozen=True, kw_only=True)
class HowTo:
    """What a reader of a page knows and the page does not say.

    ``fill`` replaces placeholders; a function finds the value when it is first needed. ``shorten``
    replaces code by code that trains less. ``exits`` has the exit codes other than 0, by how the
    command begins, ``staying`` the commands that run until Ctrl-C, ``first`` what is typed before
    the first block, and ``shown_by`` the command that prints a block of output, by how the block
    begins.
    """

    fill: Mapping[str, str | Fill] = field(default_factory=dict)
    shorten: Mapping[str, str] = field(default_factory=dict)
    exits: Mapping[str, int] = field(default_factory=dict)
    staying: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    shown_by: Mapping[str, str] = field(default_factory=dict)


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    blocks, mark, inside = [], "", None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if inside is not None:
            if line.strip() == "```":
                blocks.append(Block(inside[0], inside[1], "\n".join(inside[2]), mark))
                inside, mark = None, ""
            else:
                inside[2].append(line)
        elif line.startswith("```"):
            inside = (number, line.removeprefix("```").strip(), list[str]())
        elif line.strip():
            comment = re.fullmatch(r"<!-- (.+) -->", line.strip())
            mark = comment[1] if comment else ""
    assert inside is None, f"{page.name}: the block of line {inside} has no end"
    return blocks


def split_commands(block: Block) -> list[Shown]:
    """Return the commands of a shell block, and those of a console block with their output."""
    if block.language == SHELL:
        joined = block.text.replace("\\\n", " ")
        lines = [re.sub(r"\s+# .*$", "", line).strip() for line in joined.splitlines()]
        return [Shown(line) for line in lines if line and not line.startswith("#")]
    parts = re.split(r"^\$ ", block.text, flags=re.M)
    assert parts[0] == "", f"line {block.line}: a console block begins with a command"
    split = [part.partition("\n") for part in parts[1:]]
    return [Shown(command, output) for command, _, output in split]


def find_words(line: str) -> list[str]:
    """Return the words of a line, without numbers, IDs, absolute paths and punctuation."""
    bare = [word.strip(".,:;()[]<>=") for word in line.split()]
    return [word for word in bare if re.fullmatch(r"(?!/)[^\d]*[^\W\d_][^\d]*", word)]


def check_output(shown: str, printed: str) -> None:
    """Check that the words of each shown line stand next to each other in a printed line."""
    found = [f" {' '.join(find_words(line))} " for line in printed.splitlines()]
    for line in shown.splitlines():
        words = f" {' '.join(find_words(line))} "
        assert not words.strip() or any(words in line for line in found), (
            f"the page shows {line!r}, which is not in:\n{printed}"
        )


class Prompt:
    """A program that executes what it reads, and reports the exit code of each piece."""

    def __init__(self, command: list[str], environ: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            command,
            env=environ,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(self, text: str) -> tuple[int, str]:
        """Return the exit code and everything printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()
        printed, deadline_s = b"", time.monotonic() + COMMAND_TIMEOUT_S
        while not (end := re.search(rf"{MARK} (\d+)\n\Z".encode(), printed)):
            left_s = max(0.0, deadline_s - time.monotonic())
            is_ready = select.select([self._process.stdout], [], [], left_s)[0]
            assert is_ready, f"{text!r} takes too long:\n{printed.decode()}"
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            assert piece, f"{text!r} ended its terminal:\n{printed.decode()}"
            printed += piece
        return int(end[1]), printed[: end.start()].decode()

    def close(self) -> None:
        """End the program with what it may still be waiting for."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


class Reader:
    """Executes the blocks of one page."""

    def __init__(self, page: HowTo, environ: Mapping[str, str], folder: Path) -> None:
        self.environ, self.folder = environ, folder
        self.printed: dict[str, str] = {}
        self._page = page
        self._values: dict[str, str] = {}
        self._used: set[str] = set()
        self._shell = Prompt(["bash", "--norc", "--noprofile"], environ, folder)
        self._python: Prompt | None = None
        self._staying = 0  # the process that a page leaves running, and its group

    def follow(self, blocks: list[Block]) -> None:
        """Execute the blocks in order; each is executed or says why not."""
        for command in self._page.first:
            self.run(command)
        for block in blocks:
            if block.reason or block.module:
                continue
            if block.language == PYTHON:
                self._run_python(block)
            elif block.language in (SHELL, CONSOLE):
                for shown in split_commands(block):
                    check_output(shown.output, self.run(self._fill(shown.command)))
            else:
                start = next(start for start in self._page.shown_by if block.text.startswith(start))
                self._used.add(start)
                check_output(block.text, self.run(self._page.shown_by[start]))

    def find_unused(self) -> set[str]:
        """Return what the table has and the page has not."""
        page = self._page
        known = {*page.fill, *page.shorten, *page.exits, *page.staying, *page.shown_by}
        return known - self._used

    def run(self, command: str) -> str:
        """Type a command; return what it prints, once it ends with the code that it should."""
        if command in self._page.staying:
            self._used.add(command)
            return self._stay(command)
        code, printed = self._shell.ask(f"{{ {command}\n}} </dev/null\necho '{MARK}' $?")
        wanted = next((end for end in self._page.exits if command.startswith(end)), "")
        self._used.add(wanted)
        assert code == self._page.exits.get(wanted, 0), f"{command} exits with {code}:\n{printed}"
        self.printed[command] = printed
        return printed

    def get_last_line(self, command: str) -> str:
        """Return the last line that the newest command with this beginning has printed."""
        newest = [key for key in self.printed if key.startswith(command)][-1]
        return self.printed[newest].splitlines()[-1]

    def interrupt(self) -> None:
        """Press Ctrl-C where a command still runs, and wait for its end."""
        if self._staying:
            code, printed = self._shell.ask(f"kill -INT %1; wait %1\necho '{MARK}' $?")
            self._staying = 0
            log = self.folder / "staying.log"
            assert code == 0, f"it exits with {code} after Ctrl-C:\n{printed}{log.read_text()}"

    def close(self) -> None:
        """End everything; after a failure also what is still running."""
        if self._staying:
            with suppress(ProcessLookupError):
                os.killpg(self._staying, signal.SIGKILL)
        self._shell.close()
        if self._python is not None:
            self._python.close()

    def _stay(self, command: str) -> str:
        """Leave a command running; return what it prints until it waits for Ctrl-C."""
        self.interrupt()
        log = self.folder / "staying.log"
        log.write_text("")  # the shell returns before the command has opened it
        # With job control the background process does not ignore Ctrl-C.
        start = f"set -m; {command} </dev/null >>{log} 2>&1 &\necho $!; set +m; echo '{MARK}' 0"
        self._staying = int(self._shell.ask(start)[1].split()[-1])
        deadline_s = time.monotonic() + SHOWN_END_S
        while "Ctrl-C stops it." not in log.read_text():
            assert time.monotonic() < deadline_s, f"{command} is not up:\n{log.read_text()}"
            time.sleep(0.1)
        return log.read_text()

    def _run_python(self, block: Block) -> None:
        if self._python is None:
            self._python = Prompt([sys.executable, "-c", PROMPT], self.environ, self.folder)
        text = self._fill(block.text)
        for long, short in self._page.shorten.items():
            if long in text:
                self._used.add(long)
                text = text.replace(long, short)
        file = self.folder / f"line_{block.line}.py"
        file.write_text("\n" * block.line + text)  # a traceback has the lines of the page
        code, printed = self._python.ask(str(file))
        assert code == 0, f"the block of line {block.line} fails:\n{printed}"
        self.printed[f"line {block.line}"] = printed

    def _fill(self, text: str) -> str:
        for name, value in self._page.fill.items():
            pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
            if re.search(pattern, text):
                self._used.add(name)
                if name not in self._values:
                    self._values[name] = value if isinstance(value, str) else value(self)
                text = self._values[name].join(re.split(pattern, text))
        return text


@contextmanager
def reading(page: HowTo, environ: Mapping[str, str], folder: Path) -> Iterator[Reader]:
    """Open a terminal in the folder; at its end everything in it has ended."""
    reader = Reader(page, environ, folder)
    try:
        yield reader
        reader.interrupt()
    finally:
        reader.close()


def write_home(folder: Path) -> dict[str, str]:
    """Prepare a reader's folders; return the environment, with ``runyard`` on the path.

    The environment of this machine's own instances is left out.
    """
    home, programs = folder / "home", folder / ".venv" / "bin"
    home.mkdir()
    programs.mkdir(parents=True)
    for name, arguments in {"runyard": "-P -m runyard.cli", "python": ""}.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        program.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RUNYARD_", "DATATURE_", "PYTEST_"))
    }
    return {**kept, "HOME": str(home), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
