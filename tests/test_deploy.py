"""The systemd unit: fields required to save runs, and that systemd accepts it."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from runyard.cli import failures
from runyard.cli.instance.instance import SHUTDOWN_TIMEOUT_S, max_shutdown_s
from runyard.settings import Settings

UNIT = Path(__file__).parents[1] / "deploy" / "runyard.service"


@pytest.fixture
def service() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser["Service"])


def test_a_stop_signals_only_up_and_waits_until_runs_are_saved(service: dict[str, str]) -> None:
    assert service["ExecStart"].endswith("/runyard up")
    assert (service["Type"], service["KillMode"], service["KillSignal"]) == (
        "exec",
        "process",
        "SIGTERM",
    )
    assert int(service["TimeoutStopSec"]) > max_shutdown_s(Settings()) + SHUTDOWN_TIMEOUT_S


def test_a_service_that_cannot_start_is_not_restarted(service: dict[str, str]) -> None:
    assert service["Restart"] == "on-failure"
    prevented = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert prevented == {failures.EXIT_USAGE, failures.EXIT_CANNOT_START}


def test_the_service_has_a_user_and_a_private_data_folder(service: dict[str, str]) -> None:
    assert service["User"] not in ("", "root")
    assert service["Environment"] == f"RUNYARD_DATA_DIR=/var/lib/{service['StateDirectory']}"
    assert (service["StateDirectoryMode"], service["UMask"]) == ("0700", "0077")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert "MemoryDenyWriteExecute" not in service  # compiled kernels need it


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    program = tmp_path / "runyard"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/runyard/bin/runyard", str(program)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert UNIT.name not in done.stderr, done.stderr
