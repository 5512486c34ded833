"""The folders that an operator offers as weights, checked on the server and again on the machine that reads them.

A path counts by its real path, with every symbolic link resolved. It has to be strictly inside one of the folders, and
never inside the rest of the data folder, where checkpoints of every organization are. The answer for a path outside is
the same whether or not anything exists there. Standard library only: server, trainer and command line use this.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SETTING = "model_folders"
DEFAULT_NAME = "models"  # below the data folder
CONFIG = "config.json"


@dataclass(frozen=True)
class ModelFolders:
    """The folders of one machine, in the order in which names are looked up, and its data folder."""

    folders: tuple[Path, ...]
    data_dir: Path

    def unusable(self) -> Path | None:
        """Return a folder that contains, or is inside, the rest of the data folder; None when all are usable."""
        data_dir = _real(self.data_dir)
        for folder in self.folders:
            real = _real(folder)
            if real is None or data_dir is None or data_dir.is_relative_to(real) or self._is_reserved(real):
                return folder
        return None

    def resolve(self, path: str | os.PathLike[str]) -> Path | None:
        """Return the real path of something strictly inside a model folder, which need not exist; None for the rest."""
        real = _real(Path(path))
        if real is None or self._is_reserved(real):
            return None
        roots = (_real(folder) for folder in self.folders)
        return real if any(root is not None and root in real.parents for root in roots) else None

    def find(self, name: str) -> Path | None:
        """Return the real path of the folder with a name, the first that exists; None when there is none."""
        for folder in self.folders:
            path = self.resolve(folder / name)
            if path is not None and path.is_dir():
                return path
        return None

    def names(self) -> list[str]:
        """Return the name of every model in the folders: ``NAME``, or ``OWNER/NAME`` one level below."""
        found = set[str]()
        for folder in self.folders:
            for path in _folders_in(folder):
                inner = [path] if self._is_model(path) else list(_folders_in(path))
                found |= {item.relative_to(folder).as_posix() for item in inner if self._is_model(item)}
        return sorted(found)

    def _is_model(self, path: Path) -> bool:
        real = self.resolve(path)
        return real is not None and any((real / name).is_file() for name in (CONFIG, f"model_full/{CONFIG}"))

    def _is_reserved(self, real: Path) -> bool:
        """Whether a real path is the data folder or inside it, other than in its folder of models."""
        data_dir = _real(self.data_dir)
        return data_dir is None or (real.is_relative_to(data_dir) and not real.is_relative_to(data_dir / DEFAULT_NAME))


def split(setting: str, data_dir: Path) -> ModelFolders:
    """Return the folders that the setting lists, separated as in ``PATH``; that of the data folder when it is empty."""
    listed = [Path(item).expanduser().absolute() for item in setting.split(os.pathsep) if item]
    return ModelFolders(tuple(listed) or (data_dir / DEFAULT_NAME,), data_dir)


def _real(path: Path) -> Path | None:
    """Return an absolute path with all links resolved; None for any other, and for what is no path at all."""
    try:
        path = path.expanduser()
        return Path(os.path.realpath(path)) if path.is_absolute() else None
    except (OSError, RuntimeError, ValueError):  # a NUL, half a character, the home of somebody who does not exist
        return None


def _folders_in(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
