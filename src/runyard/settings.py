"""The settings of one deployment: argument over environment over default, read once into a frozen object.

Every setting has a default that works on a laptop, an environment variable ``RUNYARD_<NAME>``, and a line in
``runyard config show``. Nothing else in ``runyard`` reads the environment.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from runyard import model_folders
from runyard.model_folders import ModelFolders

PREFIX = "RUNYARD_"
DEFAULT_PORT = 7878
MOST = 1_000_000_000  # of any number without a limit of its own; what is larger was not meant
YES, NO = ("1", "true", "yes"), ("0", "false", "no", "")


class SettingError(ValueError):
    """A setting holds a value it cannot have; the message names setting, value and remedy."""


def setting(default: Any, help: str, *, least: float = 0, most: float = MOST, words: tuple[str, ...] = ()) -> Any:
    """A field with its one-line help, and what it may be: a number from ``least`` to ``most``, or one of ``words``."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "words": words})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``runyard up`` and the processes it starts go by."""

    data_dir: Path = setting(Path("~/.runyard"), "folder that holds everything: database, blobs, runs, keys")
    database_url: str = setting("", "postgresql+psycopg://user@host/name, without password; empty: SQLite in data_dir")
    host: str = setting("127.0.0.1", "address to listen on; beyond loopback needs insecure_bind or TLS in front")
    port: int = setting(DEFAULT_PORT, "port of API and pages; 0 takes a free one", most=65535)
    allowed_hosts: str = setting("", "further Host header values to accept, separated by commas")
    insecure_bind: bool = setting(False, "listen beyond loopback without TLS")
    public_url: str = setting("", "how clients reach the server through a proxy, as in https://train.example")
    trusted_proxies: str = setting(
        "", "addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto count, separated by commas"
    )
    max_connections: int = setting(
        4096, "TCP connections at once; as they run out, the longest silent ones are closed", least=1
    )
    connections_per_address: int = setting(
        1024, "TCP connections of one address at once; beyond that its longest silent ones are closed", least=1
    )
    idle_timeout_s: float = setting(
        30.0, "seconds a connection has for a request's headers, from its opening or its last response", least=0.1
    )
    transfer_timeout_s: float = setting(
        30.0, "seconds a client may send nothing of a body, or read nothing of a response", least=0.1
    )
    min_kib_per_s: float = setting(
        4.0,
        "KiB per second that a client must send or read on average once transfer_timeout_s is used up",
        least=0.01,
    )
    requests_per_key: int = setting(128, "requests of one key in progress at once; more are answered 429", least=1)
    requests_per_address: int = setting(
        512, "requests of one address in progress at once; more are answered 429", least=1
    )
    waits_per_key: int = setting(
        128,
        "requests of one key that wait for a change at once (log followers, or machines for the controller key)",
        least=1,
    )
    max_waits: int = setting(1024, "requests of all keys that wait for a change at once", least=1)
    slots: int = setting(1, "how many runs train at once on this machine", least=1, most=1024)
    threads: int = setting(0, "CPU threads of a trainer; 0 shares the cores among the slots", most=4096)
    share_accelerators: bool = setting(
        False, "let several runs use one accelerator at a time; without it, no more runs start than there are"
    )
    warm: bool = setting(True, "keep a parent process with torch imported, so that runs start at once")
    lease_s: float = setting(
        15.0, "seconds a supervisor may be silent before its attempt counts as lost", least=1, most=3600
    )
    grace_s: float = setting(30.0, "seconds a killed run has to save and stop before SIGKILL", most=86_400)
    max_unreachable_s: float = setting(
        1800.0,
        "seconds a run on another machine than the server's trains on without it, then it saves and stops",
        least=1,
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
    attempts: int = setting(
        3, "tries a run has when the platform is at fault; a flow's settings.attempts overrides it", least=1, most=100
    )
    link_hours: float = setting(24.0, "hours a signed download link is valid", least=0.01, most=24 * 365)
    log_max_mib: int = setting(
        100, "MiB of log kept of one run; what comes after is counted and left out, metrics never; 0 keeps everything"
    )
    keep_logs_days: float = setting(0.0, "days after a run's end until its log is removed, metrics never; 0 keeps it")
    server_log_mib: int = setting(
        64, "MiB of each file in logs until it is set aside as .1, in place of the one before; 0 never"
    )
    audit_days: int = setting(365, "days that rows of the audit log are kept; 0 keeps them for good")
    log_level: str = setting("info", "debug, info, warning or error", words=("debug", "info", "warning", "error"))

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
        SettingError: a value cannot be read as the setting's type, or is outside the setting's range.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(Settings):
        given = arguments.pop(item.name, None)
        if given is None:
            given = environ.get(PREFIX + item.name.upper())
        if given is not None:
            values[item.name] = _converted(item, given)
    if arguments:
        raise TypeError(f"unknown settings: {', '.join(sorted(arguments))}")
    if values.get("database_url"):
        _check_database_url(values["database_url"])
    _check_public_url(values.get("public_url", ""))
    trusted_networks(values.get("trusted_proxies", ""))
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


def trusted_networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Return the networks that ``trusted_proxies`` names; a single address is a network of one.

    Raises:
        SettingError: an entry is neither an address nor a network.
    """
    networks = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError as error:
            raise SettingError(
                f"{PREFIX}TRUSTED_PROXIES holds {part!r}: {error}; try: addresses or networks separated by commas, "
                "as in 127.0.0.1,10.0.0.0/8"
            ) from error
    return networks


def _check_public_url(url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_host = False
    # Clients of this API drop any path, so it must be served at the root.
    if not has_host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
        raise SettingError(
            f"{PREFIX}PUBLIC_URL is {url!r}; try: scheme and host without a path, as in https://train.example"
        )


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
    try:
        _ = parts.port
    except ValueError as error:
        raise SettingError(f"{PREFIX}DATABASE_URL: {error}; try: postgresql+psycopg://user@host:5432/name") from error
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


def _converted(item: Field[Any], given: Any) -> Any:
    """A value as the setting's type, within the setting's range.

    Raises:
        SettingError: it is not.
    """
    kind: Any = item.type
    try:
        if kind is bool and isinstance(given, str):
            value: Any = dict.fromkeys(YES, True) | dict.fromkeys(NO, False)
            value = value[given.strip().lower()]
        else:
            value = kind(given)
    except (KeyError, ValueError, OverflowError) as error:
        raise _unfit(item, given) from error
    words = item.metadata["words"]
    if words and value not in words:
        raise _unfit(item, given)
    # Written so that NaN, which compares with nothing, is outside as well.
    if kind in (int, float) and not item.metadata["least"] <= value <= item.metadata["most"]:
        raise _unfit(item, given)
    return value


def _unfit(item: Field[Any], given: Any) -> SettingError:
    name = f"{PREFIX}{item.name.upper()}"
    default = str(item.default).lower() if item.type is bool else item.default
    return SettingError(f"{name} is {str(given)!r}; it must be {allowed(item)}; try: {name}={default}, the default")


def allowed(item: Field[Any]) -> str:
    """What a setting may be, in words that follow "it must be"."""
    if item.type is bool:
        return "true or false"
    if item.metadata["words"]:
        return f"one of {', '.join(item.metadata['words'])}"
    if item.type in (int, float):
        kind = "an integer" if item.type is int else "a number"
        return f"{kind} from {item.metadata['least']:,} to {item.metadata['most']:,}"
    return "a path" if item.type is Path else "a text"
