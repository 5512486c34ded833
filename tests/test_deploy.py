"""The systemd units: fields required to save runs, and that systemd accepts them."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from runyard import starting
from runyard.cli import failures
from runyard.cli.instance.instance import SHUTDOWN_TIMEOUT_S, max_shutdown_s
from runyard.settings import Settings

DEPLOY = Path(__file__).parents[1] / "deploy"
# Each unit with its command, and the exit codes after which starting it again helps nothing.
UNITS = {
    "runyard": ("up", {failures.EXIT_USAGE, failures.EXIT_CANNOT_START}),
    "runyard-worker": ("worker", {failures.EXIT_USAGE, starting.EXIT_CANNOT_START}),
}


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def service(unit: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / f"{unit}.service")
    return dict(parser["Service"])


def test_a_stop_signals_one_process_and_waits_until_runs_are_saved(
    unit: str, service: dict[str, str]
) -> None:
    assert service["ExecStart"].endswith(f"/runyard {UNITS[unit][0]}")
    assert (service["Type"], service["KillMode"], service["KillSignal"]) == (
        "exec",
        "process",
        "SIGTERM",
    )
    assert int(service["TimeoutStopSec"]) > max_shutdown_s(Settings()) + SHUTDOWN_TIMEOUT_S


def test_a_service_that_cannot_start_is_not_restarted(unit: str, service: dict[str, str]) -> None:
    assert service["Restart"] == "on-failure"
    prevented = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert prevented == UNITS[unit][1]


def test_the_service_has_a_user_and_a_private_data_folder(service: dict[str, str]) -> None:
    assert service["User"] not in ("", "root")
    assert service["Environment"] == f"RUNYARD_DATA_DIR=/var/lib/{service['StateDirectory']}"
    assert (service["StateDirectoryMode"], service["UMask"]) == ("0700", "0077")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert "MemoryDenyWriteExecute" not in service  # compiled kernels need it


def test_systemd_accepts_the_unit(unit: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    program = tmp_path / "runyard"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = DEPLOY / f"{unit}.service"
    checked = tmp_path / file.name
    checked.write_text(file.read_text().replace("/opt/runyard/bin/runyard", str(program)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", checked], capture_output=True, text=True, check=False
    )
    assert file.name not in done.stderr, done.stderr
