"""vi-sdk and Runyard in one environment both install the package ``vi``.

The conflict is reported.
"""

import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runyard.starting import EXIT_CANNOT_START
from tests.support.slow import mark_slow

ROOT = Path(__file__).resolve().parents[1]
VI_SDK_FILES = {
    "vi/__init__.py": "from vi.api.client import ViClient as Client\n__version__ = '0.1.0b7'\n",
    "vi/api/__init__.py": "# theirs\n",
    "vi/api/client.py": "class ViClient: ...\n",
    "vi_sdk-0.1.0b7.dist-info/METADATA": "Metadata-Version: 2.1\nName: vi-sdk\nVersion: 0.1.0b7\n",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build Runyard's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def install_runyard(site: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)


def install_vi_sdk(site: Path) -> None:
    for name, text in VI_SDK_FILES.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def uninstall_vi_sdk(site: Path) -> None:
    """Remove every file that the distribution lists, as pip does, whichever wrote it."""
    for name in VI_SDK_FILES:
        (site / name).unlink()


@pytest.fixture
def site(tmp_path: Path, wheel: Path) -> Path:
    """A folder at the front of the import path."""
    folder = tmp_path / "site"
    install_runyard(folder, wheel)
    return folder


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(site), *[path for path in sys.path if path.endswith("site-packages")]]
    program = [sys.executable, "-S", *arguments]
    environment = {"PYTHONPATH": ":".join(paths), "HOME": str(site), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        program, capture_output=True, text=True, env=environment, cwd=site, timeout=120
    )


def vi_finding(site: Path) -> dict[str, str]:
    asked = python(site, "-m", "runyard.cli", "doctor", "--json", "--data-dir", str(site / "data"))
    findings = {finding["name"]: finding for finding in json.loads(asked.stdout)["findings"]}
    return dict(findings["package vi"])


def test_without_vi_sdk_there_is_no_warning(site: Path) -> None:
    done = python(site, "-W", "error", "-c", "import vi; print(vi.Client.__module__)")
    assert (done.stdout, done.stderr) == ("vi._client._sync\n", "")
    assert python(site, "-m", "runyard.cli", "flows", "plan").returncode == 0
    assert vi_finding(site)["state"] == "ok"


def test_runyard_installed_over_vi_sdk_warns_on_import_and_works(site: Path, wheel: Path) -> None:
    install_vi_sdk(site)
    install_runyard(site, wheel)
    done = python(site, "-c", "import vi; print(vi.Client.__module__)")
    assert done.stdout == "vi._client._sync\n"
    assert "RuntimeWarning: vi-sdk is installed in the same environment as runyard" in done.stderr
    finding = vi_finding(site)
    assert finding["state"] == "note"
    assert "vi-sdk 0.1.0b7" in finding["seen"]
    assert "pip uninstall -y vi-sdk" in finding["remedy"]


PROGRAMS = (
    "runyard.cli runs list",
    "runyard.cli flows plan",
    "runyard.cli up",
    "runyard.server",
    "runyard.controller",
)


def is_quick(case: tuple[str, bool]) -> bool:
    """Take each program with one of both faults by default, in turn."""
    return bool(PROGRAMS.index(case[0]) % 2) == case[1]


@pytest.mark.parametrize(
    ("program", "is_removed"),
    mark_slow(itertools.product(PROGRAMS, (False, True)), unless=is_quick),
)
def test_each_program_reports_vi_sdk_installed_over_runyard(
    site: Path, program: str, is_removed: bool
) -> None:
    install_vi_sdk(site)
    if is_removed:
        uninstall_vi_sdk(site)
    done = python(site, "-m", *program.split())
    assert done.returncode == (
        EXIT_CANNOT_START if program in ("runyard.server", "runyard.controller") else 1
    )
    assert ("is missing or incomplete" if is_removed else "is not Runyard's") in done.stderr
    assert (
        "pip uninstall -y vi-sdk && pip install --force-reinstall --no-deps runyard" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert vi_finding(site)["state"] == "missing"


def test_doctor_detects_a_single_file_of_vi_sdk(site: Path) -> None:
    (site / "vi/api/__init__.py").write_text(VI_SDK_FILES["vi/api/__init__.py"])
    finding = vi_finding(site)
    assert (finding["state"], "vi/api/__init__.py" in finding["seen"]) == ("missing", True)
