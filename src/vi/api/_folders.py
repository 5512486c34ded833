"""Folders that appear whole: filled beside their place, then put into it."""

import os
import secrets
import shutil
from pathlib import Path


def beside(path: Path, word: str) -> Path:
    """A hidden name in the same folder that nothing else has."""
    return path.with_name(f".{path.name}.{word}-{os.getpid()}-{secrets.token_hex(4)}")


def put_in_place(staged: Path, folder: Path) -> None:
    """Give a whole folder its name. What has that name is removed, and stays if the new one cannot have it."""
    if not folder.exists():
        staged.rename(folder)
        return
    old = beside(folder, "old")
    folder.rename(old)
    try:
        staged.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
