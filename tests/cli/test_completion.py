"""Completion of ids in the shell: from the cache, from the server, and without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from runyard.cli import ids
from runyard.cli.main import cli

KNOWN = [
    {"id": "8f2c-1", "help": "shelf r32 Running"},
    {"id": "8f2d-2", "help": "digits Failed"},
    {"id": "a001-3", "help": "shelf r64 Pending"},
]


def complete(arguments: list[str], incomplete: str) -> list[str]:
    completions = ShellComplete(cli, {}, "runyard", "_RUNYARD_COMPLETE")
    return [item.value for item in completions.get_completions(arguments, incomplete)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The kinds of resources that the server was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: list[str] = []

    def fetch(kind: str, _data_dir: Path | None) -> list[dict[str, str]]:
        found.append(kind)
        return KNOWN

    monkeypatch.setattr(ids, "_fetch_ids", fetch)
    return found


def test_ids_are_found_by_id_and_by_name(asked: list[str]) -> None:
    assert complete(["runs", "get"], "8f") == ["8f2c-1", "8f2d-2"]
    assert complete(["runs", "kill"], "she") == ["8f2c-1", "a001-3"]
    assert complete(["runs", "watch"], "zzz") == []
    assert asked == ["runs"]  # the cache answers the rest
    assert complete(["flows", "get"], "8f2c") == ["8f2c-1"]
    assert complete(["datasets", "rm"], "8f2c") == ["8f2c-1"]
    assert asked == ["runs", "flows", "datasets"]


def test_each_server_has_its_own_cache(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("http://a.test", "http://b.test", "http://a.test"):
        monkeypatch.setenv("DATATURE_VI_API_ENDPOINT", endpoint)
        assert complete(["runs", "get"], "a0") == ["a001-3"]
    assert asked == ["runs", "runs"]


def test_an_old_cache_is_replaced_and_serves_while_the_server_is_down(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(["runs", "get"], "")
    (file,) = (tmp_path / "cache" / "runyard").iterdir()
    file.write_text(json.dumps(KNOWN[:1]))
    os.utime(file, (0, 0))
    assert len(complete(["runs", "get"], "")) == 3
    os.utime(file, (0, 0))

    def fail(_kind: str, _data_dir: Path | None) -> list[dict[str, str]]:
        raise ConnectionError

    monkeypatch.setattr(ids, "_fetch_ids", fail)
    assert len(complete(["runs", "get"], "")) == 3
    file.write_text("damaged")
    os.utime(file, (0, 0))
    assert complete(["runs", "get"], "") == []


def test_a_line_that_is_still_being_typed_is_completed(asked: list[str]) -> None:
    assert complete(["--format"], "a") == ["auto", "agent"]
    assert complete(["runs", "get", "--debug"], "8f2c") == ["8f2c-1"]


def test_the_cache_answers_without_loading_the_sdk(asked: list[str], tmp_path: Path) -> None:
    complete(["runs", "get"], "")
    script = (
        "import sys, runyard.cli.main as main\n"
        "try:\n    main.cli(prog_name='runyard')\nexcept SystemExit:\n    pass\n"
        "print(*[name for name in ('vi.client', 'httpx2', 'msgspec') if name in sys.modules])"
    )
    environ = {
        **os.environ,
        "_RUNYARD_COMPLETE": "bash_complete",
        "COMP_WORDS": "runyard runs get 8f",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["plain,8f2c-1", "plain,8f2d-2", ""]
