"""Which checkpoint an attempt goes on from."""

from pathlib import Path

from runyard import rundir
from runyard.supervisor.resume import newest_proven, prepare


def save(attempt: Path, name: str, *, step: int) -> Path:
    checkpoint = attempt / rundir.CHECKPOINTS / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").write_bytes(name.encode())
    files = [{"path": "model", "sizeBytes": len(name), "sha256": rundir.sha256_of(checkpoint / "model")}]
    rundir.write_json(
        checkpoint / rundir.MANIFEST, {"checkpoint": name, "step": step, "epoch": 1, "time": step, "files": files}
    )
    return checkpoint


def attempts(tmp_path: Path, count: int) -> list[Path]:
    folders = [tmp_path / "attempts" / str(number) for number in range(1, count + 1)]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def test_a_first_attempt_starts_fresh(tmp_path: Path) -> None:
    (first,) = attempts(tmp_path, 1)
    prepare(first)
    assert not (first / rundir.RESUME).exists()


def test_the_newest_step_of_all_earlier_attempts_is_taken(tmp_path: Path) -> None:
    first, second, third = attempts(tmp_path, 3)
    save(first, "epoch-1", step=10)
    newest = save(first, "epoch-2", step=20)
    save(second, "step-15", step=15)
    save(third, "epoch-9", step=90)
    prepare(third)
    assert rundir.read_json(third / rundir.RESUME) == {"folder": str(newest)}


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first, second = attempts(tmp_path, 2)
    good = save(first, "epoch-1", step=10)
    (save(first, "epoch-2", step=20) / "model").write_bytes(b"torn")
    assert newest_proven(second) == good
