"""Which server a command talks to, and with which key.

``--data-dir`` names the data folder of an instance and wins over everything; without it the variables
``DATATURE_VI_*`` count, then the credentials in the data folder of ``RUNYARD_DATA_DIR``, then those in ``~/.runyard``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli.failures import EXIT_UNREACHABLE, CommandFailed

if TYPE_CHECKING:
    import vi

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Data folder of the instance. [default: RUNYARD_DATA_DIR, else ~/.runyard]",
)


@contextmanager
def connect(data_dir: Path | None) -> "Iterator[vi.Client]":
    """A client of the server that the command line means."""
    import vi

    with vi.Client(**_credentials(data_dir)) as client:
        yield client


def _credentials(data_dir: Path | None) -> dict[str, str]:
    """The arguments of ``vi.Client``: everything from a named data folder, or only where to look last."""
    import json

    from runyard.settings import read_settings

    file = read_settings(data_dir=data_dir).credentials_file
    if data_dir is None:
        return {"config_file": str(file)} if file.exists() else {}
    try:
        known = json.loads(file.read_bytes())
        return {name: known[name] for name in ("endpoint", "secret_key", "organization_id")}
    except FileNotFoundError:
        raise CommandFailed(
            f"no instance has been started with the data folder {data_dir} yet ({file.name} is missing there); "
            f"start one with `runyard up --data-dir {data_dir}`",
            exit_code=EXIT_UNREACHABLE,
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed(f"{file} is damaged ({error}); the next `runyard up` writes it anew") from error
