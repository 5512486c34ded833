"""The revision of a source tree, as git itself reads it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runyard.trainer import environment

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")


def git(folder: Path, *arguments: str) -> str:
    """Run git without the user's settings."""
    nowhere = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "PATH": os.environ["PATH"],
    }
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    command = ["git", *names, "-C", str(folder), *arguments]
    return subprocess.run(
        command, env=nowhere, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A work tree with one commit and a minimal copy of the package."""
    root = tmp_path / "checkout"
    trainer = root / "src" / "runyard" / "trainer"
    trainer.mkdir(parents=True)
    (root / "src" / "runyard" / "__init__.py").write_text("")
    (trainer / "__init__.py").write_text("")
    shutil.copy(environment.__file__, trainer / "environment.py")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def test_the_commit_is_found_in_refs_and_packed_refs(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert environment.head_commit(checkout) == commit
    git(checkout, "worktree", "add", "--quiet", "-b", "further", str(tmp_path / "further"))
    assert environment.head_commit(tmp_path / "further") == commit
    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git" / "refs" / "heads" / "main").exists()
    assert (
        environment.head_commit(checkout) == environment.head_commit(tmp_path / "further") == commit
    )
    git(checkout, "checkout", "--quiet", "--detach")
    assert environment.head_commit(checkout) == commit


def test_without_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert environment.head_commit(tmp_path) is None


def test_the_revision_of_the_running_source_says_whether_it_was_modified(
    checkout: Path,
) -> None:
    program = "from runyard.trainer.environment import revision; print(revision())"

    def revision() -> str:
        environ = {
            "PYTHONPATH": str(checkout / "src"),
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environ,
            cwd=checkout,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("outside the source")
    assert revision() == f"{{'commit': '{commit}', 'isDirty': False}}"
    (checkout / "src" / "runyard" / "further.py").write_text("")
    assert revision() == f"{{'commit': '{commit}', 'isDirty': True}}"
