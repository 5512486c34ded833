"""The wheel without extras: the SDK works, and every command names the extra that it lacks."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runyard import extras
from runyard.cli.main import COMMANDS
from runyard.server.pages import assets
from tests.support.commands import Runyard

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER_EXTRAS = {
    name: needed for name, needed in PROJECT["optional-dependencies"].items() if name != "dev"
}


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def with_what_they_need(names: list[str]) -> set[str]:
    """Return distributions and everything that they require without an extra."""
    found: set[str] = set()
    waiting = [name_of(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        required = [Requirement(each) for each in distribution(name).requires or []]
        waiting += [
            name_of(each.name)
            for each in required
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the built wheel and its required libraries, without extras."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("runyard-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in with_what_they_need(PROJECT["dependencies"]):
        for file in distribution(name).files or []:
            if file.parts[0] != ".." and file.suffix != ".pyc":
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(file.locate())).resolve())
    return site


def python(site: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run code with the libraries of ``site`` alone."""
    before = f"import sys; sys.path.insert(0, {str(site)!r}); "
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", before + code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    )


def script(site: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run what the installed script ``runyard`` runs."""
    (metadata,) = site.glob("runyard-*.dist-info/entry_points.txt")
    found = re.search(r"^runyard = ([\w.]+):(\w+)$", metadata.read_text(), re.M)
    assert found is not None
    return python(site, f"from {found[1]} import {found[2]} as run; sys.exit(run())", *arguments)


def test_every_library_of_an_extra_is_known_by_its_import_name() -> None:
    imported_as: dict[str, set[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            imported_as.setdefault(name.lower().replace("_", "-"), set()).add(module)
    for extra, needed in USER_EXTRAS.items():
        for requirement in needed:
            name = name_of(requirement)
            modules = {
                name
                for name in imported_as[name]
                if not name.startswith("_") and name.isidentifier()
            }
            assert any(extras.find_extra(module) in USER_EXTRAS for module in modules), (
                extra,
                name,
                modules,
            )
    assert set(extras.IMPORTS) == set(USER_EXTRAS)


def test_the_sdk_imports_without_any_extra(site: Path) -> None:
    done = python(site, "import vi; print(vi.Client.__name__)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Client\n", "")


def test_help_names_the_extra_and_version_answers(site: Path) -> None:
    for option in ("--help", "-h"):
        done = script(site, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert "pip install 'runyard[server]'" in done.stdout
    done = script(site, "--version")
    assert (done.returncode, done.stdout) == (0, f"runyard {PROJECT['version']}\n")
    assert script(site).returncode == 2


@pytest.mark.parametrize("command", [*COMMANDS, "no-such-command"])
def test_every_command_names_the_extra_in_one_line(site: Path, command: str) -> None:
    done = script(site, command, "--help")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith("pip install 'runyard[server]'\n")
    assert done.stderr.count("\n") == 1


def test_the_server_without_its_libraries_names_the_extra_and_is_not_started_again(
    site: Path,
) -> None:
    done = python(site, "import runpy; runpy.run_module('runyard.server', run_name='__main__')")
    assert done.returncode == 3
    assert done.stderr.endswith("pip install 'runyard[server]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", [name for names in extras.IMPORTS.values() for name in names])
def test_a_missing_library_of_any_extra_is_a_sentence_and_not_a_traceback(
    module: str, runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_nothing(*_: object) -> object:
        raise ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.part")

    monkeypatch.setattr("runyard.cli.main.importlib.import_module", import_nothing)
    result = runyard("doctor")
    assert result.exit_code == 2
    assert f"pip install 'runyard[{extras.find_extra(module)}]'" in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_module_of_the_project_keeps_its_traceback() -> None:
    assert extras.explain_missing_extra(ModuleNotFoundError("no", name="runyard.nothing")) is None
    assert extras.explain_missing_extra(ImportError("no", name="torch")) is None


def test_the_wheel_has_the_pages_with_their_libraries_and_licenses(site: Path) -> None:
    static = site / "runyard" / "server" / "pages" / "static"
    found = {path.relative_to(static).as_posix() for path in static.rglob("*") if path.is_file()}
    assert set(assets.REQUIRED) <= found, "run scripts/assets"
    packages = json.loads((ROOT / "package.json").read_text())["dependencies"]
    licenses = {f"vendor/licenses/{name.rpartition('/')[2]}.txt" for name in packages}
    assert licenses <= found
    assert (static.parent / "templates" / "base.html").exists()


def test_the_lock_file_of_the_libraries_names_no_registry() -> None:
    lock = json.loads((ROOT / "package-lock.json").read_text())
    assert not [name for name, entry in lock["packages"].items() if "resolved" in entry]
    hashed = [entry for name, entry in lock["packages"].items() if name]
    assert all("integrity" in entry for entry in hashed)
