"""The run folder's readers and writers, also on files that a crash left behind."""

import ast
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from runyard import rundir


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": 1', b"[1]", b"null", b"\xff\xfe", b'{"a": "\xff"}', b"\0" * 64]
)
def test_a_torn_json_file_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    assert rundir.read_json(tmp_path / "run.json") is None


def test_an_absent_json_file_is_absent(tmp_path: Path) -> None:
    assert rundir.read_json(tmp_path / "run.json") is None


def test_json_is_written_atomically_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    rundir.write_json(tmp_path / "run.json", {"name": "täst"})
    rundir.write_json(tmp_path / "run.json", {"name": "again"})
    assert rundir.read_json(tmp_path / "run.json") == {"name": "again"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_an_incomplete_last_line_is_left_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"one\ntw")
    assert rundir.read_lines(path, 0) == (["one"], 4)
    assert rundir.read_lines(path, 4) == ([], 4)
    path.write_bytes(b"one\ntwo\n")
    assert rundir.read_lines(path, 4) == (["two"], 8)


def test_an_incomplete_last_line_is_read_once_the_file_is_final(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    path.write_bytes(b"one\ntw")
    assert rundir.read_lines(path, 4, is_final=True) == (["tw"], 6)
    assert rundir.read_lines(path, 6, is_final=True) == ([], 6)


def test_an_overlong_line_is_cut_and_reading_continues_after_it(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    path.write_bytes(b"x" * 25 + b"\nlast\n")
    texts: list[str] = []
    offset = 0
    while True:
        lines, offset = rundir.read_lines(path, offset, 10)
        if not lines:
            break
        texts += lines
    assert "".join(text.removesuffix(" [line cut]") for text in texts) == "x" * 25 + "last"
    assert offset == 31


def test_half_a_character_and_nul_bytes_become_replacement_marks(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    path.write_bytes("ä".encode()[:1] + b"\0\n")
    assert rundir.read_lines(path, 0) == (["\ufffd\ufffd"], 3)


def test_an_absent_file_has_no_lines(tmp_path: Path) -> None:
    assert rundir.read_lines(tmp_path / "stdout.log", 7) == ([], 7)


def test_event_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2):
        events = rundir.EventWriter(tmp_path, lambda: 5)
        events.write("warning", message=str(number))
        events.close()
    lines, _ = rundir.read_lines(tmp_path / "events.jsonl", 0)
    assert [json.loads(line)["n"] for line in lines] == [1, 2]


def test_an_event_after_a_torn_line_starts_a_new_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"n": 1}\n{"n": 2, "ev')
    events = rundir.EventWriter(tmp_path, lambda: 5)
    events.write("warning", message="x")
    events.close()
    lines, _ = rundir.read_lines(tmp_path / "events.jsonl", 0)
    assert json.loads(lines[-1])["n"] == 3


def test_an_event_with_an_unknown_field_is_rejected(tmp_path: Path) -> None:
    events = rundir.EventWriter(tmp_path, lambda: 5)
    with pytest.raises(ValueError, match="has no field"):
        events.write("warning", text="lost")
    events.close()


def save_checkpoint(folder: Path, name: str, *, step: int, content: bytes = b"weights") -> Path:
    checkpoint = rundir.AttemptDir(folder).checkpoints / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").write_bytes(content)
    files = [
        {
            "path": "model",
            "sizeBytes": len(content),
            "sha256": rundir.sha256_of(checkpoint / "model"),
        }
    ]
    manifest: dict[str, Any] = {"checkpoint": name, "step": step, "time": step, "files": files}
    rundir.write_json(checkpoint / rundir.MANIFEST, manifest)
    return checkpoint


def test_checkpoints_are_listed_by_step_and_only_complete_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "epoch-10", step=10)
    save_checkpoint(tmp_path, "epoch-9", step=9)
    save_checkpoint(tmp_path, ".staging-epoch-11", step=11)
    (save_checkpoint(tmp_path, "epoch-12", step=12) / rundir.MANIFEST).write_bytes(
        b'{"checkpoint": "epoch-12"'
    )
    (save_checkpoint(tmp_path, "epoch-13", step=13) / rundir.MANIFEST).write_bytes(
        b'{"checkpoint": "epoch-13"}'
    )
    assert [path.name for path, _ in rundir.list_checkpoints(tmp_path)] == ["epoch-9", "epoch-10"]


def test_a_checkpoint_with_a_changed_or_missing_file_is_not_proven(tmp_path: Path) -> None:
    good, changed, missing = (save_checkpoint(tmp_path, name, step=1) for name in ("a", "b", "c"))
    (changed / "model").write_bytes(b"WEIGHTS")
    (missing / "model").unlink()
    proven = {
        path.name: rundir.is_proven(path, manifest)
        for path, manifest in rundir.list_checkpoints(tmp_path)
    }
    assert proven == {"a": True, "b": False, "c": False}
    assert good.is_dir()


def test_an_invalid_manifest_is_not_proven(tmp_path: Path) -> None:
    assert not rundir.is_proven(tmp_path, {"files": [{"path": "x"}]})
    assert not rundir.is_proven(tmp_path, {"files": [3]})


def test_synced_events_are_complete_lines_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    events = rundir.EventWriter(tmp_path, lambda: 5)
    events.write("warning", message="a")
    events.sync()
    assert synced == [path.stat().st_ino for path in (rundir.AttemptDir(tmp_path).events, tmp_path)]
    events.close()


class LimitedFile:
    """A stand-in for the events file that accepts a limited number of bytes."""

    def __init__(self, file: Any, space_bytes: int):
        self._file, self.space_bytes = file, space_bytes

    def fileno(self) -> int:
        return int(self._file.fileno())

    def write(self, data: bytes) -> int:
        if self.space_bytes == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = data[: self.space_bytes]
        self.space_bytes -= len(taken)
        return int(self._file.write(taken))

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("space_bytes", [0, 1, 40, 75])
def test_events_wait_in_order_on_a_full_disk_and_none_is_torn(
    tmp_path: Path, space_bytes: int
) -> None:
    events = rundir.EventWriter(tmp_path, lambda: 5)
    events.write("warning", message="fits")
    before = (tmp_path / "events.jsonl").read_bytes()
    disk = events._file = LimitedFile(events._file, space_bytes)  # type: ignore[assignment]
    for number in range(3):
        events.write("warning", message=f"waits {number}")
        seen = (tmp_path / "events.jsonl").read_bytes()
        assert seen.startswith(before)
        assert seen.endswith(b"\n")
        disk.space_bytes = 0  # another process may use the space that was freed
    with pytest.raises(OSError, match="No space left"):
        events.sync()
    disk.space_bytes = 10_000
    events.write("warning", message="continues")
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["message"] for line in lines] == [
        "fits",
        "waits 0",
        "waits 1",
        "waits 2",
        "continues",
    ]
    events.sync()
    events.close()


def test_no_other_module_joins_the_names_of_an_attempts_files() -> None:
    """``RUN`` also names a file of downloaded models, ``COMPLETE`` one of shared folders."""
    names = {name for name in vars(rundir) if name.isupper()} - {"RUN", "COMPLETE"}
    source = Path(rundir.__file__).parent
    joined = []
    for path in sorted(source.rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "runyard.rundir"
            for alias in node.names
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
                continue
            part = ast.unparse(node.right)
            if part.removeprefix("rundir.") in names and (
                part.startswith("rundir.") or part in imported
            ):
                joined.append(f"{path.relative_to(source)}:{node.lineno}: {part}")
    assert not joined
