"""The folders whose models may be used as weights, checked on server and machines.

A path is resolved to its real path, without symbolic links. It must be strictly inside one of the
folders, and not in the rest of the data folder, which holds checkpoints of every organization. The
result for a path outside is the same whether or not it exists. Standard library only: server,
trainer and command line use this.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SETTING = "model_folders"
DEFAULT_NAME = "models"  # below the data folder
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class ModelFolders:
    """Model folders of one machine, in the order of lookup, and its data folder."""

    folders: tuple[Path, ...]
    data_dir: Path

    def find_unusable(self) -> Path | None:
        """Return a folder that contains, or is inside, the rest of the data folder.

        None when all are usable.
        """
        data_dir = _resolve_links(self.data_dir)
        for folder in self.folders:
            real = _resolve_links(folder)
            if (
                real is None
                or data_dir is None
                or data_dir.is_relative_to(real)
                or self._is_reserved(real)
            ):
                return folder
        return None

    def resolve(self, path: str | os.PathLike[str]) -> Path | None:
        """Return the real path of a path strictly inside a model folder, existing or not.

        None for any other.
        """
        real = _resolve_links(Path(path))
        if real is None or self._is_reserved(real):
            return None
        roots = (_resolve_links(folder) for folder in self.folders)
        return real if any(root is not None and root in real.parents for root in roots) else None

    def find(self, name: str) -> Path | None:
        """Return the real path of the first folder with a name; None when there is none."""
        for folder in self.folders:
            path = self.resolve(folder / name)
            if path is not None and path.is_dir():
                return path
        return None

    def list_names(self) -> list[str]:
        """Return the names of all models: ``NAME``, or ``OWNER/NAME`` one level below."""
        found = set[str]()
        for folder in self.folders:
            for path in _list_folders(folder):
                inner = [path] if self._is_model(path) else list(_list_folders(path))
                found |= {
                    item.relative_to(folder).as_posix() for item in inner if self._is_model(item)
                }
        return sorted(found)

    def _is_model(self, path: Path) -> bool:
        real = self.resolve(path)
        return real is not None and any(
            (real / name).is_file() for name in (CONFIG, f"model_full/{CONFIG}", ADAPTER_CONFIG)
        )

    def _is_reserved(self, real: Path) -> bool:
        """Return whether a real path is in the data folder, but not in its model folder."""
        data_dir = _resolve_links(self.data_dir)
        return data_dir is None or (
            real.is_relative_to(data_dir) and not real.is_relative_to(data_dir / DEFAULT_NAME)
        )


def parse_setting(setting: str, data_dir: Path) -> ModelFolders:
    """Parse the setting, separated as ``PATH`` is.

    When it is empty, the folder in the data folder.
    """
    listed = [Path(item).expanduser().absolute() for item in setting.split(os.pathsep) if item]
    return ModelFolders(tuple(listed) or (data_dir / DEFAULT_NAME,), data_dir)


def _resolve_links(path: Path) -> Path | None:
    """Return an absolute path with all links resolved; None for a relative or invalid path."""
    try:
        path = path.expanduser()
        return Path(os.path.realpath(path)) if path.is_absolute() else None
    # NUL, a lone surrogate, the home of an unknown user.
    except (OSError, RuntimeError, ValueError):
        return None


def _list_folders(folder: Path) -> Iterator[Path]:
    try:
        yield from (
            path
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        )
    except OSError:
        return
