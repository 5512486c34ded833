"""The settings of one deployment: argument over environment over default, read once into a frozen object.

Every setting has a default that works on a laptop, an environment variable ``RUNYARD_<NAME>``, and a line in
``runyard config show``. Nothing else in ``runyard`` reads the environment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from runyard import model_folders
from runyard.model_folders import ModelFolders

PREFIX = "RUNYARD_"
DEFAULT_PORT = 7878


class SettingError(ValueError):
    """A setting holds a value it cannot have; the message names setting, value and remedy."""


def setting(default: Any, help: str) -> Any:
    """A field with its one-line help."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``runyard up`` and the processes it starts go by."""

    data_dir: Path = setting(Path("~/.runyard"), "folder that holds everything: database, blobs, runs, keys")
    database_url: str = setting("", "postgresql+psycopg://user@host/name, without password; empty: SQLite in data_dir")
    host: str = setting("127.0.0.1", "address to listen on; beyond loopback needs insecure_bind or TLS in front")
    port: int = setting(DEFAULT_PORT, "port of API and pages; 0 takes a free one")
    allowed_hosts: str = setting("", "further Host header values to accept, separated by commas")
    insecure_bind: bool = setting(False, "listen beyond loopback without TLS")
    slots: int = setting(1, "how many runs train at once on this machine")
    threads: int = setting(0, "CPU threads of a trainer; 0 shares the cores among the slots")
    warm: bool = setting(True, "keep a parent process with torch imported, so that runs start at once")
    lease_s: float = setting(15.0, "seconds a supervisor may be silent before its attempt counts as lost")
    grace_s: float = setting(30.0, "seconds a killed run has to save and stop before SIGKILL")
    max_unreachable_s: float = setting(
        1800.0, "seconds a run on another machine than the server's trains on without it, then it saves and stops"
    )
    hang_minutes: float = setting(10.0, "minutes without a word of a training run until a warning says so; 0 never")
    spool_mib: int = setting(64, "MiB of a log that wait for a server that is away; what is older is left out")
    free_disk_mib: int = setting(1024, "MiB of free space a machine must have to begin a run; 0 never waits")
    datasets_max_gib: int = setting(
        50, "GiB of uploaded datasets kept on a machine; unused ones go first, those that runs use always stay"
    )
    model_folders: str = setting(
        "", "folders that weights may be read from, separated by colons; empty: models in data_dir"
    )
    weights_max_gib: int = setting(
        100, "GiB of weights of other runs kept on a machine; unused ones go first, those that runs use always stay"
    )
    cache_max_gib: int = setting(
        20, "GiB of encoded pictures kept on a machine; 0, or no room: each run decodes pictures as it draws them"
    )
    leave_running: bool = setting(False, "when ending, let runs train on instead of saving and stopping them")
    attempts: int = setting(3, "tries a run has when the platform is at fault; a flow's settings.attempts overrides it")
    link_hours: float = setting(24.0, "hours a signed download link is valid")
    log_level: str = setting("info", "debug, info, warning or error")

    @property
    def database(self) -> Path | str:
        """What ``Store`` opens: the file of the data folder, or the URL of a PostgreSQL database."""
        return self.database_url or self.data_dir / "server.db"

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def runs_dir(self) -> Path:
        """``<runs_dir>/<organization>/<run>/attempts/<n>/`` is the folder of an attempt (see ``runyard.rundir``)."""
        return self.data_dir / "runs"

    @property
    def imports_dir(self) -> Path:
        """``<imports_dir>/<organization>/<import>/``: what an import is working at; gone when it is over."""
        return self.data_dir / "imports"

    @property
    def datasets_dir(self) -> Path:
        """``<datasets_dir>/<organization>/<version>/``: versions of uploaded datasets that runs here need."""
        return self.data_dir / "datasets"

    @property
    def models(self) -> ModelFolders:
        """The folders of ``model_folders``; ``runyard models add`` writes into the first."""
        return model_folders.split(self.model_folders, self.data_dir)

    @property
    def weights_dir(self) -> Path:
        """``<weights_dir>/<organization>/<hash>/``: checkpoints of other runs that runs here begin from."""
        return self.data_dir / "weights"

    @property
    def cache_dir(self) -> Path:
        """``<cache_dir>/<organization>/<dataset>/``: their pictures as models take them; may go at any time."""
        return self.data_dir / "cache"

    @property
    def machine_dir(self) -> Path:
        """What belongs to this machine: its id, the controller's lock, the warm parent's socket."""
        return self.data_dir / "machine"

    @property
    def secrets_dir(self) -> Path:
        """Pepper, signing key and controller key; 0700, each file 0600."""
        return self.data_dir / "secrets"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def credentials_file(self) -> Path:
        """What ``vi.Client(config_file=...)`` reads: endpoint, secret_key, organization_id; 0600."""
        return self.data_dir / "credentials.json"

    @property
    def server_file(self) -> Path:
        """Where the running server says where it listens: ``{"endpoint": ..., "pid": ...}``."""
        return self.data_dir / "server.json"


def read_settings(environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    """Build the settings; an argument that is None counts as not given.

    Raises:
        SettingError: a value cannot be read as the setting's type.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(Settings):
        given = arguments.pop(item.name, None)
        if given is None:
            given = environ.get(PREFIX + item.name.upper())
        if given is not None:
            values[item.name] = _convert(item.name, item.type, given)
    if arguments:
        raise TypeError(f"unknown settings: {', '.join(sorted(arguments))}")
    if values.get("database_url"):
        _check_database_url(values["database_url"])
    values["data_dir"] = Path(values.get("data_dir", Settings.data_dir)).expanduser().absolute()
    if values.get("model_folders"):
        folders = model_folders.split(values["model_folders"], values["data_dir"]).folders
        values["model_folders"] = os.pathsep.join(map(str, folders))
    settings = Settings(**values)
    _check_model_folders(settings)
    return settings


def source_of(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Where a setting that was not given as an argument comes from: its variable's name, or ``default``."""
    variable = PREFIX + name.upper()
    return variable if variable in (os.environ if environ is None else environ) else "default"


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make a child process read the same settings."""
    return {PREFIX + item.name.upper(): str(getattr(settings, item.name)) for item in fields(Settings)}


def _check_model_folders(settings: Settings) -> None:
    """Refuse a folder through which checkpoints, secrets or data of every organization could be read as weights."""
    unusable = settings.models.unusable()
    if unusable is not None:
        raise SettingError(
            f"{PREFIX}MODEL_FOLDERS names {str(unusable)!r}, which contains or is inside the data folder; "
            f"list folders apart from it, or {settings.data_dir / model_folders.DEFAULT_NAME}"
        )


def _check_database_url(url: str) -> None:
    """Settings are shown and handed to child processes, so a password has no place in them."""
    parts = urlsplit(url)
    if parts.scheme != "postgresql+psycopg":
        raise SettingError(
            f"{PREFIX}DATABASE_URL begins with {parts.scheme!r}; give postgresql+psycopg://user@host/name, "
            "or nothing for SQLite in the data folder"
        )
    if parts.password or "password" in parse_qs(parts.query):
        raise SettingError(
            f"{PREFIX}DATABASE_URL holds a password; put it into a file that only you can read and name that file: "
            "postgresql+psycopg://user@host/name?passfile=/path/to/pgpass"
        )


def _convert(name: str, kind: Any, given: Any) -> Any:
    try:
        if kind is bool and isinstance(given, str):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[
                given.lower()
            ]
        return kind(given)
    except (KeyError, ValueError) as error:
        raise SettingError(
            f"{PREFIX}{name.upper()} is {given!r}, which is not a {kind.__name__}; see `runyard config show`"
        ) from error
