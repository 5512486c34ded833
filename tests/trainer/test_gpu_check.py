"""The check of an accelerator: rows of failing checks, and every check in its dry form."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.gpu_check import main as gpu_check
from runyard.trainer.gpu_check.isolation import (
    Check,
    CheckReport,
    CheckRow,
    RunningCheck,
    Unavailable,
    run_check,
    run_checks,
)
from runyard.trainer.gpu_check.machine import find_peak_flops
from runyard.trainer.gpu_check.runs import CheckContext, merge
from runyard.trainer.gpu_check.speed import LOOPS, measure_speed
from runyard.trainer.gpu_check.wheels import add_wheels, find_wheels_argument

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "scripts" / "gpu-check"
NOT_ON_A_PROCESSOR = {
    "attention flash",
    "attention flash, packed",
    "precision float16",
    "speed, TRL",
}


def succeed() -> CheckReport:
    return CheckReport("all is well", {"value": 1})


def lack_a_package() -> CheckReport:
    raise Unavailable("not installed: flash-attn")


def raise_an_error() -> CheckReport:
    print("about to fail")
    raise ValueError("the loss is wrong\nand more")


def crash() -> CheckReport:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def exit_early() -> CheckReport:
    os._exit(3)


def hang_with_a_child(started: Path) -> CheckReport:
    pid = os.fork()
    if pid == 0:
        started.write_text(str(os.getpid()))
    time.sleep(600)
    return CheckReport("")


def make_check(function: Any, *arguments: Any, limit_s: float = 60.0) -> Check:
    return Check(name=function.__name__, function=function, arguments=arguments, limit_s=limit_s)


def run_one(folder: Path, function: Any, *arguments: Any, limit_s: float = 60.0) -> CheckRow:
    check = make_check(function, *arguments, limit_s=limit_s)
    return run_check(check, folder, deadline_s=time.monotonic() + 60)


@pytest.mark.parametrize(
    ("function", "result", "detail"),
    [
        (succeed, "ok", "all is well"),
        (lack_a_package, "skipped", "not installed: flash-attn"),
        (raise_an_error, "failed", "ValueError: the loss is wrong"),
        (crash, "failed", "the process ended with signal SIGKILL"),
        (exit_early, "failed", "the process ended with code 3"),
    ],
)
def test_every_end_of_a_check_is_a_row(
    tmp_path: Path, function: Any, result: str, detail: str
) -> None:
    row = run_one(tmp_path, function)
    assert (row.result, row.detail) == (result, detail)


def test_a_failed_check_shows_what_it_wrote(tmp_path: Path) -> None:
    log = run_one(tmp_path, raise_an_error).log
    assert "about to fail" in log
    assert "raise ValueError" in log


def test_a_hanging_check_ends_with_its_descendants(tmp_path: Path) -> None:
    started = tmp_path / "started"
    running = RunningCheck(make_check(hang_with_a_child, started, limit_s=0.0), tmp_path / "log")
    while not (started.exists() and started.read_text()):
        time.sleep(0.01)
    row = running.poll()
    assert row is not None
    assert (row.result, row.detail) == ("failed", "no result after 0 s")
    assert not is_running(int(started.read_text()))


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie, after a while."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.05)
    return True


def test_nothing_runs_after_the_deadline(tmp_path: Path) -> None:
    checks = [make_check(hang_with_a_child, tmp_path / "started"), make_check(succeed)]
    rows = list(run_checks(checks, tmp_path, deadline_s=time.monotonic() + 0.2))
    assert [row.detail for row in rows] == ["no time was left"] * 2


def test_rows_keep_the_order_of_their_checks(tmp_path: Path) -> None:
    checks = [make_check(raise_an_error), make_check(succeed), make_check(exit_early)]
    rows = list(run_checks(checks, tmp_path, deadline_s=time.monotonic() + 60, slots=3))
    assert [row.check for row in rows] == ["raise_an_error", "succeed", "exit_early"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("Tesla T4", 65),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_the_peak_of_a_card_is_found_by_its_name(name: str, tflops: float) -> None:
    assert find_peak_flops(name) == tflops * 1e12


def test_an_unknown_card_has_no_peak() -> None:
    assert find_peak_flops("Card of the future") is None


def test_settings_are_changed_inside_of_nested_objects() -> None:
    base = {"compute": {"compile": False, "attention": "auto"}, "packing": False}
    changed = merge(base, {"compute": {"compile": True}, "quantization": {"enabled": True}})
    assert changed["compute"] == {"compile": True, "attention": "auto"}
    assert changed["packing"] is False
    assert base["compute"] == {"compile": False, "attention": "auto"}


def make_speed_row(speed: float, **more: Any) -> CheckRow:
    numbers = {"tokensPerSecond": speed, "peakBytes": 3 << 30, **more}
    return CheckRow(check="", result="ok", detail="", seconds=10.0, numbers=numbers)


def summarize_speed(
    tmp_path: Path, measured: dict[str, list[CheckRow]], device_name: str
) -> tuple[list[str], list[CheckRow]]:
    """Return the order in which loops ran, and their rows."""
    order: list[str] = []

    def run(check: Check) -> CheckRow:
        loop = check.name.removeprefix("speed, ")
        order.append(loop)
        return measured[loop].pop(0)

    context = CheckContext(folder=tmp_path, is_dry=False, device_name=device_name)
    return order, list(measure_speed(context, run, lambda: 1e6))


def test_loops_alternate_and_are_compared_within_their_rounds(tmp_path: Path) -> None:
    ours, trainer, trl = LOOPS
    measured = {
        ours: [make_speed_row(1000.0, flopsPerToken=1e11), make_speed_row(800, flopsPerToken=1e11)],
        trainer: [make_speed_row(500.0), make_speed_row(400.0)],
        trl: [CheckRow(check="", result="failed", detail="ImportError: no")],
    }
    order, rows = summarize_speed(tmp_path, measured, "NVIDIA H200")
    assert order == [ours, trainer, trl, trainer, ours]
    assert [row.result for row in rows] == ["ok", "ok", "skipped"]
    assert rows[0].detail == "900 tokens/s, 9% of the peak FLOP/s, peak 3.0 GiB"
    assert "450 tokens/s, ours is 2.00 times as fast, 5% of the peak" in rows[1].detail
    assert rows[2].detail == "ImportError: no"


def test_speed_on_an_unknown_card_has_no_utilization(tmp_path: Path) -> None:
    ours, *others = LOOPS
    missing = CheckRow(check="", result="skipped", detail="not installed: trl")
    measured = {ours: [make_speed_row(1000.0, flopsPerToken=1e11)] * 2}
    measured |= {loop: [missing] for loop in others}
    _, rows = summarize_speed(tmp_path, measured, "Card of the future")
    assert "100 TFLOP/s (Card of the future: unknown peak)" in rows[0].detail
    assert rows[0].numbers["flopsUtilization"] is None


def test_packages_of_wheels_are_found_without_installing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    with zipfile.ZipFile(tmp_path / "packed-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("only_in_a_wheel/__init__.py", "VALUE = 7\n")
    assert add_wheels(tmp_path, tmp_path / "target") == ["packed-1.0-py3-none-any.whl"]
    import only_in_a_wheel  # type: ignore[import-not-found]

    assert only_in_a_wheel.VALUE == 7


def test_a_wheel_writes_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("../escaped.py", "")
    with pytest.raises(ValueError, match="outside of its folder"):
        add_wheels(tmp_path, tmp_path / "target")


def test_a_folder_without_wheels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no wheels in"):
        add_wheels(tmp_path, tmp_path / "target")


def test_the_folder_of_wheels_is_known_before_packages_are() -> None:
    assert find_wheels_argument(["--dry", "--wheels", "here"]) == "here"
    assert find_wheels_argument(["--wheels=there"]) == "there"
    assert find_wheels_argument(["--dry"]) is None


def test_a_missing_package_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "REQUIRED", ("torch", "no_such_package"))
    assert gpu_check.main(["--dry"]) == 2
    written = capsys.readouterr().err
    assert "not installed: no_such_package" in written
    assert "--wheels" in written


def list_names(tmp_path: Path) -> set[str]:
    context = CheckContext(folder=tmp_path, is_dry=True)
    names = {check.name for check in gpu_check.list_checks(context)}
    loops = {f"speed, {loop}" for loop in LOOPS}
    return names | loops | {"devices", "small model", "large model", "compile"}


def test_the_page_shows_a_row_of_every_check(tmp_path: Path) -> None:
    lines = (ROOT / "docs" / "gpu.md").read_text().splitlines()
    shown = {name for name in list_names(tmp_path) if any(ln.startswith(name) for ln in lines)}
    assert shown == list_names(tmp_path)


@pytest.mark.slow
@pytest.mark.train
def test_the_dry_form_runs_every_check(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(PROGRAM), "--dry", "--deadline", "600", "--json", str(found)]
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=700,
        cwd=tmp_path,
        env=environment,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    document = json.loads(found.read_text())
    rows = {row["check"]: row for row in document["rows"]}
    assert set(rows) == list_names(tmp_path)
    assert {name for name, row in rows.items() if row["result"] != "ok"} <= NOT_ON_A_PROCESSOR
    assert rows["precision float16"]["result"] == "skipped"
    assert rows["speed, ours"]["numbers"]["flopsPerToken"] > 1e4
    assert document["form"] == "dry"
    assert document["versions"]["torch"]
    for name in rows:
        assert name in ended.stdout


def test_the_page_names_only_options_that_exist() -> None:
    page = (ROOT / "docs/gpu.md").read_text()
    shown = subprocess.run(
        [sys.executable, PROGRAM, "--help"], capture_output=True, text=True, check=True
    ).stdout
    named = set(re.findall(r"(?<![\w-])--[a-z]+", page))
    assert {"--dry", "--json"} <= named <= set(re.findall(r"--[a-z]+", shown))
