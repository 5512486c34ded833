"""Selection of the server and key of a command.

``--data-dir`` names the data folder of an instance and takes precedence. Otherwise the variables
``DATATURE_VI_*`` apply, then the credentials in the data folder of ``RUNYARD_DATA_DIR`` or
``~/.runyard``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from runyard.cli.failures import EXIT_UNREACHABLE, EXIT_USAGE, CommandFailed

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

    retries = PATIENT_RETRIES if is_patient else QUICK_RETRIES
    try:
        client = vi.Client(
            **_read_client_arguments(data_dir), max_retries=retries, timeout=timeout_s
        )
    except vi.ViConfigurationError as error:
        if error.error_code is not vi.ViErrorCode.MISSING_REQUIRED_FIELD:
            raise
        raise CommandFailed(
            f"{error.message}; try: start an instance with `runyard up`, name its data folder with "
            "--data-dir, or set DATATURE_VI_SECRET_KEY and DATATURE_VI_ORGANIZATION_ID",
            exit_code=EXIT_USAGE,
        ) from error
    with client:
        yield client


def find_key(data_dir: Path | None) -> str:
    """Return the key that ``connect`` uses.

    Raises:
        CommandFailed: No key was found.
    """
    from vi._client.credentials import find_credentials

    with connect(data_dir):
        return find_credentials(**_read_client_arguments(data_dir)).secret_key


def _read_client_arguments(data_dir: Path | None) -> "ClientArguments":
    """Return the credentials of a named data folder, or the default configuration file."""
    import json

    from runyard.settings import read_settings

    file = read_settings(data_dir=data_dir).credentials_file
    if data_dir is None:
        return {"config_file": str(file)} if file.exists() else {}
    try:
        known = json.loads(file.read_bytes())
        return {
            "endpoint": known["endpoint"],
            "secret_key": known["secret_key"],
            "organization_id": known["organization_id"],
        }
    except FileNotFoundError:
        raise CommandFailed(
            f"no instance has been started with the data folder {data_dir} ({file.name} is "
            f"missing); try: runyard up --data-dir {data_dir}",
            exit_code=EXIT_UNREACHABLE,
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{file} is damaged ({error}); try: restore a copy of it") from error
