"""The settings of one deployment: argument over environment over default.

Every setting has a default that works on a laptop, an environment variable ``RUNYARD_<NAME>``, and
a line in ``runyard config show``. Nothing else in ``runyard`` reads the environment.
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
MAX_NUMBER = 1_000_000_000  # default limit of numbers; a larger value is a typing error
YES, NO = ("1", "true", "yes"), ("0", "false", "no", "")


class SettingError(ValueError):
    """A setting has an invalid value; the message names setting, value and fix."""


def setting(
    default: Any,
    help: str,
    *,
    minimum: float = 0,
    maximum: float = MAX_NUMBER,
    choices: tuple[str, ...] = (),
) -> Any:
    """Return a field with its help, and its allowed numbers or words."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of ``runyard up`` and of the processes that it starts."""

    data_dir: Path = setting(Path("~/.runyard"), "folder of all data: database, blobs, runs, keys")
    database_url: str = setting(
        "", "postgresql+psycopg://user@host/name, without password; empty: SQLite in data_dir"
    )
    host: str = setting(
        "127.0.0.1", "address to listen on; beyond loopback needs tls_cert or insecure_bind"
    )
    port: int = setting(DEFAULT_PORT, "port of API and pages; 0 takes a free one", maximum=65535)
    allowed_hosts: str = setting("", "additional Host header values to accept, separated by commas")
    insecure_bind: bool = setting(False, "listen beyond loopback without TLS")
    tls_cert: str = setting(
        "", "PEM file of the server's certificate and its chain; serves https:// instead of http://"
    )
    tls_key: str = setting("", "PEM file of the private key of tls_cert, without a password")
    ca: str = setting(
        "",
        "PEM file of the certificates that clients trust, of authorities or servers; empty: "
        "SSL_CERT_FILE, else those of the system",
    )
    insecure: bool = setting(
        False, "let this machine connect to a server beyond loopback without TLS"
    )
    public_url: str = setting(
        "", "how clients reach the server through a proxy, as in https://train.example"
    )
    trusted_proxies: str = setting(
        "",
        "addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto count, "
        "separated by commas",
    )
    max_connections: int = setting(
        4096,
        "TCP connections at once; when they run out, the longest idle ones are closed",
        minimum=1,
    )
    connections_per_address: int = setting(
        1024,
        "TCP connections of one address at once; beyond that its longest idle ones are closed",
        minimum=1,
    )
    idle_timeout_s: float = setting(
        30.0,
        "seconds until a connection must have sent request headers, from its start or its last "
        "response",
        minimum=0.1,
    )
    transfer_timeout_s: float = setting(
        30.0,
        "seconds a client may send nothing of a body, or read nothing of a response",
        minimum=0.1,
    )
    min_kib_per_s: float = setting(
        4.0,
        "KiB per second that a client must send or read on average after transfer_timeout_s",
        minimum=0.01,
    )
    requests_per_key: int = setting(
        128, "requests of one key in progress at once; more are answered 429", minimum=1
    )
    requests_per_address: int = setting(
        512, "requests of one address in progress at once; more are answered 429", minimum=1
    )
    waits_per_key: int = setting(
        128,
        "requests of one key that wait for a change at once (log followers, or machines for the "
        "controller key)",
        minimum=1,
    )
    max_waits: int = setting(1024, "requests of all keys that wait for a change at once", minimum=1)
    slots: int = setting(1, "runs that train at once on this machine", minimum=1, maximum=1024)
    threads: int = setting(
        0, "CPU threads of a trainer; 0 shares the cores among the slots", maximum=4096
    )
    share_accelerators: bool = setting(
        False,
        "let several runs use one accelerator at a time; otherwise each run needs one of its own",
    )
    warm: bool = setting(
        True, "keep a parent process with torch imported, so that runs start faster"
    )
    lease_s: float = setting(
        15.0,
        "seconds without a renewal after which an attempt counts as lost",
        minimum=1,
        maximum=3600,
    )
    grace_s: float = setting(
        30.0, "seconds a killed run has to save and stop before SIGKILL", maximum=86_400
    )
    max_unreachable_s: float = setting(
        1800.0,
        "seconds that a run on another machine trains without the server before it saves and stops",
        minimum=1,
    )
    hang_minutes: float = setting(
        10.0, "minutes without output of a training run until a warning; 0 never warns"
    )
    spool_mib: int = setting(
        64, "MiB of log kept while the server is unreachable; older lines are dropped"
    )
    free_disk_mib: int = setting(
        1024, "MiB of free disk space that a machine needs to start a run; 0 disables the check"
    )
    datasets_max_gib: int = setting(
        50, "GiB of uploaded datasets kept on a machine; only unused ones are removed"
    )
    model_folders: str = setting(
        "", "folders that weights may be read from, separated by colons; empty: models in data_dir"
    )
    weights_max_gib: int = setting(
        100, "GiB of fetched weights kept on a machine; only unused ones are removed"
    )
    cache_max_gib: int = setting(
        20,
        "GiB of encoded images cached on a machine; 0, or too little disk space: runs decode "
        "images on demand",
    )
    notice: str = setting(
        "", "file or address whose appearance announces the end of this machine: runs save and stop"
    )
    leave_running: bool = setting(
        False, "on shutdown, let runs continue instead of saving and stopping them"
    )
    attempts: int = setting(
        3,
        "maximum attempts after infrastructure failures; a flow's settings.attempts overrides it",
        minimum=1,
        maximum=100,
    )
    link_hours: float = setting(
        24.0, "hours a signed download link is valid", minimum=0.01, maximum=24 * 365
    )
    log_max_mib: int = setting(
        100,
        "MiB of log kept of one run; later lines are counted and dropped, metrics never; 0 keeps "
        "everything",
    )
    keep_logs_days: float = setting(
        0.0, "days after a run's end until its log is removed, metrics never; 0 keeps it"
    )
    server_log_mib: int = setting(
        64, "MiB of each file in logs until it is rotated to .1; 0 never rotates"
    )
    audit_days: int = setting(365, "days that rows of the audit log are kept; 0 keeps them forever")
    log_level: str = setting(
        "info", "debug, info, warning or error", choices=("debug", "info", "warning", "error")
    )

    @property
    def database(self) -> Path | str:
        """The argument of ``Store``: the file in the data folder, or a PostgreSQL URL."""
        return self.database_url or self.data_dir / "server.db"

    @property
    def blobs_dir(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def runs_dir(self) -> Path:
        """``<runs_dir>/<organization>/<run>/attempts/<n>/`` is the folder of an attempt (see
        ``runyard.rundir``).
        """
        return self.data_dir / "runs"

    @property
    def imports_dir(self) -> Path:
        """``<imports_dir>/<organization>/<import>/`` is the work folder of an import, removed at
        its end.
        """
        return self.data_dir / "imports"

    @property
    def datasets_dir(self) -> Path:
        """``<datasets_dir>/<organization>/<version>/`` is a version of an uploaded dataset that
        runs here need.
        """
        return self.data_dir / "datasets"

    @property
    def models(self) -> ModelFolders:
        """The folders of ``model_folders``; ``runyard models add`` writes into the first."""
        return model_folders.parse_setting(self.model_folders, self.data_dir)

    @property
    def model_hashes_file(self) -> Path:
        """The hashes of the files of base models that other machines have fetched."""
        return self.data_dir / "base-models.json"

    @property
    def weights_dir(self) -> Path:
        """``<weights_dir>/<organization>/<hash>/`` is a checkpoint whose weights runs here start
        from, ``base-<hash>`` a base model of the server's machine.
        """
        return self.data_dir / "weights"

    @property
    def cache_dir(self) -> Path:
        """``<cache_dir>/<organization>/<dataset>/`` holds encoded images.

        May be removed at any time.
        """
        return self.data_dir / "cache"

    @property
    def machine_dir(self) -> Path:
        """Files of this machine: its id, the controller's lock, the warm parent's socket."""
        return self.data_dir / "machine"

    @property
    def secrets_dir(self) -> Path:
        """Pepper, signing key and controller key; 0700, each file 0600."""
        return self.data_dir / "secrets"

    @property
    def controller_file(self) -> Path:
        """Endpoint and key of the controller, and the certificates that it trusts; 0600."""
        return self.secrets_dir / "controller.json"

    @property
    def allows_plain_http(self) -> bool:
        """Whether the controller may send its key to another address than loopback without TLS.

        It may if the server of the same data folder listens there.
        """
        return self.insecure or self.insecure_bind

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def credentials_file(self) -> Path:
        """The file for ``vi.Client(config_file=...)``: endpoint, secret_key, organization_id.

        0600.
        """
        return self.data_dir / "credentials.json"

    @property
    def server_file(self) -> Path:
        """The file in which the running server writes ``{"endpoint": ..., "pid": ...}``.

        With TLS it also has ``certificate``, the path of ``certificate_file``, and
        ``namedEndpoint``, by which browsers and other machines reach it.
        """
        return self.data_dir / "server.json"

    @property
    def certificate_file(self) -> Path:
        """The certificate that the running server presents, for clients on its own machine."""
        return self.data_dir / "certificate.pem"


def read_settings(environ: Mapping[str, str] | None = None, **arguments: Any) -> Settings:
    """Read the settings; an argument of None counts as not given.

    Raises:
        SettingError: a value has the wrong type or is outside the setting's range.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for item in fields(Settings):
        given = arguments.pop(item.name, None)
        if given is None:
            given = environ.get(PREFIX + item.name.upper())
        if given is not None:
            values[item.name] = _convert(item, given)
    if arguments:
        raise TypeError(f"unknown settings: {', '.join(sorted(arguments))}")
    if values.get("database_url"):
        _check_database_url(values["database_url"])
    _check_public_url(values.get("public_url", ""))
    trusted_networks(values.get("trusted_proxies", ""))
    values["data_dir"] = Path(values.get("data_dir", Settings.data_dir)).expanduser().absolute()
    for name in filter(values.get, ("tls_cert", "tls_key", "ca")):
        values[name] = str(Path(values[name]).expanduser().absolute())
    _check_tls_pair(values.get("tls_cert", ""), values.get("tls_key", ""))
    if values.get("model_folders"):
        folders = model_folders.parse_setting(values["model_folders"], values["data_dir"]).folders
        values["model_folders"] = os.pathsep.join(map(str, folders))
    settings = Settings(**values)
    _check_model_folders(settings)
    return settings


def get_source(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the source of a setting that is no argument: its variable's name, or ``default``."""
    variable = PREFIX + name.upper()
    return variable if variable in (os.environ if environ is None else environ) else "default"


def build_environment(settings: Settings) -> dict[str, str]:
    """Return the variables from which a child process reads the same settings."""
    return {
        PREFIX + item.name.upper(): str(getattr(settings, item.name)) for item in fields(Settings)
    }


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
                f"{PREFIX}TRUSTED_PROXIES holds {part!r}: {error}; try: addresses or networks "
                "separated by commas, as in 127.0.0.1,10.0.0.0/8"
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
    if (
        not has_host
        or parts.scheme not in ("http", "https")
        or parts.path not in ("", "/")
        or parts.query
    ):
        raise SettingError(
            f"{PREFIX}PUBLIC_URL is {url!r}; try: scheme and host without a path, as in "
            "https://train.example"
        )


def _check_tls_pair(certificate: str, key: str) -> None:
    if bool(certificate) != bool(key):
        given, missing = ("CERT", "KEY") if certificate else ("KEY", "CERT")
        raise SettingError(
            f"{PREFIX}TLS_{given} is {certificate or key!r}, but {PREFIX}TLS_{missing} is not set; "
            "try: both --tls-cert and --tls-key, or neither"
        )


def _check_model_folders(settings: Settings) -> None:
    """Raise for a folder that would expose data of other organizations as weights."""
    unusable = settings.models.find_unusable()
    if unusable is not None:
        raise SettingError(
            f"{PREFIX}MODEL_FOLDERS names {str(unusable)!r}, which contains or is inside the data "
            "folder; try: folders outside of it, or "
            f"{settings.data_dir / model_folders.DEFAULT_NAME}"
        )


def _check_database_url(url: str) -> None:
    """Raise for an invalid URL, or one with a password: settings are displayed and passed on."""
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError as error:
        raise SettingError(
            f"{PREFIX}DATABASE_URL: {error}; try: postgresql+psycopg://user@host:5432/name"
        ) from error
    if parts.scheme != "postgresql+psycopg":
        raise SettingError(
            f"{PREFIX}DATABASE_URL begins with {parts.scheme!r}; try: "
            "postgresql+psycopg://user@host/name, or an empty value for SQLite in the data folder"
        )
    if parts.password or "password" in parse_qs(parts.query):
        raise SettingError(
            f"{PREFIX}DATABASE_URL contains a password; try: name a file with it that only you can "
            "read: postgresql+psycopg://user@host/name?passfile=/path/to/pgpass"
        )


def _convert(item: Field[Any], given: Any) -> Any:
    """Convert a value to the setting's type, and check its range.

    Raises:
        SettingError: it is invalid.
    """
    kind: Any = item.type
    try:
        if kind is bool and isinstance(given, str):
            value: Any = dict.fromkeys(YES, True) | dict.fromkeys(NO, False)
            value = value[given.strip().lower()]
        else:
            value = kind(given)
    except (KeyError, ValueError, OverflowError) as error:
        raise _invalid(item, given) from error
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise _invalid(item, given)
    # Written so that NaN, which is unequal to everything, is outside as well.
    if kind in (int, float) and not item.metadata["minimum"] <= value <= item.metadata["maximum"]:
        raise _invalid(item, given)
    return value


def _invalid(item: Field[Any], given: Any) -> SettingError:
    name = f"{PREFIX}{item.name.upper()}"
    default = str(item.default).lower() if item.type is bool else item.default
    return SettingError(
        f"{name} is {str(given)!r}; it must be {describe_allowed(item)}; try: {name}={default}, "
        "the default"
    )


def describe_allowed(item: Field[Any]) -> str:
    """Return the allowed values of a setting, in words that follow "it must be"."""
    if item.type is bool:
        return "true or false"
    if item.metadata["choices"]:
        return f"one of {', '.join(item.metadata['choices'])}"
    if item.type in (int, float):
        kind = "an integer" if item.type is int else "a number"
        return f"{kind} from {item.metadata['minimum']:,} to {item.metadata['maximum']:,}"
    return "a path" if item.type is Path else "a text"
