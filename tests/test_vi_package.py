"""vi-sdk and Runyard in one environment: both are the package ``vi``. Whichever came last, somebody says so."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runyard.starting import EXIT_CANNOT_START

ROOT = Path(__file__).resolve().parents[1]
THEIRS = {
    "vi/__init__.py": "from vi.api.client import ViClient as Client\n__version__ = '0.1.0b7'\n",
    "vi/api/__init__.py": "# theirs\n",
    "vi/api/client.py": "class ViClient: ...\n",
    "vi_sdk-0.1.0b7.dist-info/METADATA": "Metadata-Version: 2.1\nName: vi-sdk\nVersion: 0.1.0b7\n",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runyard's own wheel, built here."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def install_ours(site: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)


def install_theirs(site: Path) -> None:
    for name, text in THEIRS.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def remove_theirs(site: Path) -> None:
    """As pip uninstalls: every file that the distribution lists, whoever wrote it last."""
    for name in THEIRS:
        (site / name).unlink()


@pytest.fixture
def site(tmp_path: Path, wheel: Path) -> Path:
    """A folder that stands before everything else that can be imported."""
    folder = tmp_path / "site"
    install_ours(folder, wheel)
    return folder


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *[path for path in sys.path if path.endswith("site-packages")]]
    program = [sys.executable, "-S", *arguments]
    environment = {"PYTHONPATH": ":".join(paths), "HOME": str(site), "PATH": "/usr/bin:/bin"}
    return subprocess.run(program, capture_output=True, text=True, env=environment, cwd=site, timeout=120)


def vi_finding(site: Path) -> dict[str, str]:
    asked = python(site, "-m", "runyard.cli", "doctor", "--json", "--data-dir", str(site / "data"))
    findings = {finding["name"]: finding for finding in json.loads(asked.stdout)["findings"]}
    return dict(findings["package vi"])


def test_alone_nothing_is_said(site: Path) -> None:
    done = python(site, "-W", "error", "-c", "import vi; print(vi.Client.__module__)")
    assert (done.stdout, done.stderr) == ("vi._client._sync\n", "")
    assert python(site, "-m", "runyard.cli", "flows", "plan").returncode == 0
    assert vi_finding(site)["state"] == "ok"


def test_ours_over_theirs_warns_on_import_and_works(site: Path, wheel: Path) -> None:
    install_theirs(site)
    install_ours(site, wheel)
    done = python(site, "-c", "import vi; print(vi.Client.__module__)")
    assert done.stdout == "vi._client._sync\n"
    assert "RuntimeWarning: vi-sdk is installed beside runyard" in done.stderr
    finding = vi_finding(site)
    assert finding["state"] == "note"
    assert "vi-sdk 0.1.0b7" in finding["seen"]
    assert "pip uninstall -y vi-sdk" in finding["remedy"]


@pytest.mark.parametrize(
    "program",
    [
        ("-m", "runyard.cli", "runs", "list"),
        ("-m", "runyard.cli", "flows", "plan"),
        ("-m", "runyard.cli", "up"),
        ("-m", "runyard.server"),
        ("-m", "runyard.controller"),
    ],
    ids=lambda program: " ".join(program[1:]),
)
@pytest.mark.parametrize("is_removed", [False, True], ids=["overwritten", "removed again"])
def test_theirs_over_ours_is_said_by_each_program(site: Path, program: tuple[str, ...], is_removed: bool) -> None:
    install_theirs(site)
    if is_removed:
        remove_theirs(site)
    done = python(site, *program)
    assert done.returncode == (EXIT_CANNOT_START if program[1] in ("runyard.server", "runyard.controller") else 1)
    assert ("has lost its files" if is_removed else "is not Runyard's") in done.stderr
    assert "pip uninstall -y vi-sdk && pip install --force-reinstall --no-deps runyard" in done.stderr
    assert "Traceback" not in done.stderr
    assert vi_finding(site)["state"] == "missing"


def test_doctor_notices_a_single_file_of_theirs(site: Path) -> None:
    (site / "vi/api/__init__.py").write_text(THEIRS["vi/api/__init__.py"])
    finding = vi_finding(site)
    assert (finding["state"], "vi/api/__init__.py" in finding["seen"]) == ("missing", True)
