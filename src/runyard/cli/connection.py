"""Selection of the server and key of a command.

``--data-dir`` names the data folder of an instance and takes precedence, then ``--profile`` or
RUNYARD_PROFILE. Otherwise the variables ``DATATURE_VI_*`` apply, then the credentials in the data
folder of ``RUNYARD_DATA_DIR`` or ``~/.runyard``.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from runyard.cli.failures import EXIT_UNREACHABLE, EXIT_USAGE, CommandFailed
from runyard.cli.global_options import PROFILE_VARIABLE, get_global_options

if TYPE_CHECKING:
    import vi

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data folder of the instance. [default: RUNYARD_DATA_DIR, else ~/.runyard]",
)


class ClientArguments(TypedDict, total=False):
    """Arguments of ``vi.Client``; the SDK looks up missing ones."""

    endpoint: str
    secret_key: str
    organization_id: str
    config_file: str
    ca: str


# Reading commands report an unreachable server soon; changing commands retry longer.
QUICK_RETRIES, PATIENT_RETRIES = 1, 3
ANSWER_TIMEOUT_S = 60.0


@contextmanager
def connect(
    data_dir: Path | None, *, is_patient: bool = False, timeout_s: float = ANSWER_TIMEOUT_S
) -> "Iterator[vi.Client]":
    """Yield a client of the selected server.

    With ``is_patient`` it survives a restart of the server.

    Raises:
        CommandFailed: No key was found.
    """
    import vi
    from vi._client.credentials import find_credentials

    retries = PATIENT_RETRIES if is_patient else QUICK_RETRIES
    try:
        found = find_credentials(**_read_client_arguments(data_dir))
        client = vi.Client._with_credentials(found, max_retries=retries, timeout=timeout_s)
    except vi.ViConfigurationError as error:
        if error.error_code is not vi.ViErrorCode.MISSING_REQUIRED_FIELD:
            raise
        raise CommandFailed(
            f"{error.message}; try: start an instance with `runyard up`, name its data folder with "
            "--data-dir, or set DATATURE_VI_SECRET_KEY and DATATURE_VI_ORGANIZATION_ID",
            exit_code=EXIT_USAGE,
        ) from error
    from vi.api.resources.runs._findings import RunFindingWarning

    with client, warnings.catch_warnings():
        warnings.simplefilter("ignore", RunFindingWarning)  # commands print findings
        yield client


def find_key(data_dir: Path | None) -> str:
    """Return the key that ``connect`` uses.

    Raises:
        CommandFailed: No key was found.
    """
    from vi._client.credentials import find_credentials

    with connect(data_dir):
        return find_credentials(**_read_client_arguments(data_dir)).secret_key


def choose_profile() -> str | None:
    """Return the name of the profile to use; None without one."""
    return get_global_options().profile or os.environ.get(PROFILE_VARIABLE) or None


def list_connection_sources(data_dir: Path | None) -> list[tuple[str, str, str]]:
    """Return name, value and source of the server, organization and key; the key is not shown."""
    from runyard.settings import read_settings
    from vi._client.credentials import DEFAULT_ENDPOINT, VARIABLES

    arguments = _read_client_arguments(data_dir)
    profile = choose_profile()
    if data_dir is None and profile is not None:
        file = get_profile_folder() / f"{profile}.json"
    else:
        file = read_settings(data_dir=data_dir).credentials_file
    known = arguments if "endpoint" in arguments else read_json_object(file)
    found = []
    for name in ("endpoint", "organization_id", "secret_key"):
        variable = VARIABLES[name]
        if "endpoint" not in arguments and os.environ.get(variable):
            value, source = os.environ[variable], variable
        elif known.get(name):
            value, source = str(known[name]), str(file)
        else:
            value = DEFAULT_ENDPOINT if name == "endpoint" else ""
            source = "default" if value else "missing"
        found.append((name, "(hidden)" if value and name == "secret_key" else value, source))
    return found


def read_json_object(file: Path) -> dict[str, object]:
    """Return the JSON object in a file; empty if there is none."""
    import json

    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def get_profile_folder() -> Path:
    """Return the folder of the profiles: one file per profile, in the user's configuration."""
    return Path(click.get_app_dir("runyard")) / "profiles"


def read_profile(name: str) -> "ClientArguments":
    """Return the server and key of a profile.

    Raises:
        CommandFailed: There is no such profile, or its file is damaged.
    """
    import json

    folder = get_profile_folder()
    file = folder / f"{check_profile_name(name)}.json"
    try:
        known = json.loads(file.read_bytes())
        return _name_arguments(known, file)
    except FileNotFoundError:
        names = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none"
        raise CommandFailed(
            f"there is no profile {name!r} (profiles: {names}); try: runyard profiles add {name} "
            "FILE",
            exit_code=EXIT_USAGE,
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(
            f"{file} is damaged ({error}); try: runyard profiles add {name} FILE --overwrite",
            exit_code=EXIT_USAGE,
        ) from error


def check_profile_name(name: str) -> str:
    """Return the name of a profile, which is the name of a file.

    Raises:
        CommandFailed: It contains other characters than letters, digits, '_' and '-'.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
        raise CommandFailed(
            f"the profile {name[:80]!r} is malformed, expected: 1 to 64 letters, digits, '_' and "
            "'-'",
            exit_code=EXIT_USAGE,
        )
    return name


def _name_arguments(known: dict[str, str], file: Path) -> "ClientArguments":
    """Return the values of a file as arguments, which the environment does not override.

    The file itself also says which certificate its endpoint presents.
    """
    return {
        "endpoint": known["endpoint"],
        "secret_key": known["secret_key"],
        "organization_id": known["organization_id"],
        "config_file": str(file),
    }


def _read_client_arguments(data_dir: Path | None) -> "ClientArguments":
    """Return the credentials to use, and the certificates of ``--ca``."""
    arguments = _choose_credentials(data_dir)
    ca = get_global_options().ca
    return arguments if ca is None else {**arguments, "ca": ca}


def _choose_credentials(data_dir: Path | None) -> "ClientArguments":
    """Return the credentials of a named data folder, or the default configuration file."""
    import json

    from runyard.settings import read_settings

    profile = choose_profile()
    if data_dir is None and profile is not None:
        return read_profile(profile)
    file = read_settings(data_dir=data_dir).credentials_file
    if data_dir is None:
        return {"config_file": str(file)} if file.exists() else {}
    try:
        known = json.loads(file.read_bytes())
        return _name_arguments(known, file)
    except FileNotFoundError:
        raise CommandFailed(
            f"no instance has been started with the data folder {data_dir} ({file.name} is "
            f"missing); try: runyard up --data-dir {data_dir}",
            exit_code=EXIT_UNREACHABLE,
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{file} is damaged ({error}); try: restore a copy of it") from error
