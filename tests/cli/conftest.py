"""Fixtures of the command-line tests: in-process calls, isolated from the machine's settings."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runyard.cli.main import cli
from tests.support.commands import Runyard


@pytest.fixture(autouse=True)
def _away_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads this machine's credentials or variables, or leaves files in its folder."""
    for name in ("RUNYARD_DATA_DIR", "RUNYARD_PORT", "RUNYARD_HOST", "DATATURE_VI_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DATATURE_VI_ORGANIZATION_ID", "DATATURE_VI_API_ENDPOINT", "RUNYARD_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runyard() -> Runyard:
    """Call ``runyard`` with these arguments; the result has exit_code, stdout and stderr."""

    def call(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, list(arguments), input=stdin)

    return call
