"""Which key, which organisation, which server: argument over environment over configuration file.

The file is the one named as ``config_file``, or ``~/.runyard/credentials.json`` if a server of this user wrote one.
Each value is looked for on its own, and remembers where it was found, so that a message can say which place to mend.
The key itself appears in no message.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vi._text import shorten_repr
from vi.errors import ViConfigurationError, ViErrorCode

DEFAULT_ENDPOINT = "http://127.0.0.1:7878/"
DEFAULT_CONFIG_FILE = "~/.runyard/credentials.json"
KEY_PREFIX = "dtvi_"
KEY_LENGTH = 103

_VARIABLES = {
    "secret_key": "DATATURE_VI_SECRET_KEY",
    "organization_id": "DATATURE_VI_ORGANIZATION_ID",
    "endpoint": "DATATURE_VI_API_ENDPOINT",
}


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Who asks whom."""

    secret_key: str
    organization_id: str
    endpoint: str
    key_source: Literal["argument", "environment", "file"]
    config_file: Path

    def reference(self) -> dict[str, str]:
        """Return where the key is found again, and what is no secret; for pickles.

        Raises:
            ViConfigurationError: the key was an argument, so that it is found nowhere.
        """
        if self.key_source == "argument":
            raise ViConfigurationError(
                "a client whose secret_key is an argument cannot be pickled: the key would be in the pickle",
                suggestion=f"Set {_VARIABLES['secret_key']}, or name a file with config_file=..., here and there.",
            )
        return {
            "organization_id": self.organization_id,
            "endpoint": self.endpoint,
            "key_source": self.key_source,
            "config_file": str(self.config_file.absolute()),
        }

    def __repr__(self) -> str:
        return f"Credentials(organization_id={self.organization_id!r}, endpoint={self.endpoint!r})"


def find_credentials(
    *,
    secret_key: str | None = None,
    organization_id: str | None = None,
    endpoint: str | None = None,
    config_file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Credentials:
    """Look each value up.

    Raises:
        ViConfigurationError: one is missing or malformed.
    """
    arguments = {"secret_key": secret_key, "organization_id": organization_id, "endpoint": endpoint}
    environ = os.environ if environ is None else environ
    file = _ConfigFile(config_file)
    found = {name: _find(name, arguments[name], environ, file) for name in arguments}
    key, key_place = _required("secret_key", found)
    organization, organization_place = _required("organization_id", found)
    _check_key(key, place=key_place)
    _check_organization(organization, place=organization_place)
    in_environment = environ.get(_VARIABLES["secret_key"])
    return Credentials(
        secret_key=key,
        organization_id=organization,
        endpoint=found["endpoint"][0] or DEFAULT_ENDPOINT,
        key_source="argument" if secret_key is not None else "environment" if in_environment else "file",
        config_file=file.path,
    )


def find_again(reference: Mapping[str, str]) -> Credentials:
    """Look the key of an unpickled client up where it was found before.

    Raises:
        ViConfigurationError: it is not there.
    """
    variable = _VARIABLES["secret_key"]
    is_in_file = reference["key_source"] == "file"
    if not is_in_file and not os.environ.get(variable):
        raise ViConfigurationError(
            f"the pickled client had its key from {variable}, which is not set in this process",
            error_code=ViErrorCode.MISSING_REQUIRED_FIELD,
            suggestion=f"Set {variable} here as well.",
        )
    return find_credentials(
        organization_id=reference["organization_id"],
        endpoint=reference["endpoint"],
        config_file=reference["config_file"] if is_in_file else None,
        environ={} if is_in_file else None,
    )


def check_connection(*, timeout: object, max_retries: object) -> None:
    """See that a client can wait so long and repeat so often.

    Raises:
        ViConfigurationError: it cannot.
    """
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout <= 86_400:  # type: ignore[operator]
        raise ViConfigurationError(
            f"timeout is {shorten_repr(timeout)}",
            error_code=ViErrorCode.INVALID_PARAMETER,
            suggestion="Give seconds, more than 0 and at most 86400.",
        )
    if not isinstance(max_retries, int) or isinstance(max_retries, bool) or not 0 <= max_retries <= 1000:
        raise ViConfigurationError(
            f"max_retries is {shorten_repr(max_retries)}",
            error_code=ViErrorCode.INVALID_PARAMETER,
            suggestion="Give a whole number from 0 to 1000; 0 never repeats.",
        )


class _ConfigFile:
    """The configuration file, read when the first value is looked for in it."""

    def __init__(self, named: str | Path | None) -> None:
        self._is_named = named is not None
        try:
            self.path = Path(DEFAULT_CONFIG_FILE if named is None else named).expanduser()
        except (TypeError, RuntimeError) as error:
            raise ViConfigurationError(
                f"config_file is {shorten_repr(named)}, which is no path here", suggestion="Give a path.", cause=error
            ) from error
        self._values: dict[str, object] | None = None

    def get(self, name: str) -> str | None:
        if self._values is None:
            self._values = self._read()
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value or None
        raise ViConfigurationError(f"{name} in {self.path} is not a string", suggestion="Write it in quotes.")

    def _read(self) -> dict[str, object]:
        try:
            values = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError as error:
            if not self._is_named:
                return {}
            raise ViConfigurationError(
                f"config_file {self.path} does not exist", suggestion="Check the path.", cause=error
            ) from error
        except (OSError, ValueError) as error:
            raise ViConfigurationError(
                f"{self.path} cannot be read as JSON ({type(error).__name__})",
                suggestion='It holds {"secret_key": "...", "organization_id": "...", "endpoint": "..."}.',
                cause=error if isinstance(error, OSError) else None,
            ) from None
        if not isinstance(values, dict):
            raise ViConfigurationError(f"{self.path} holds no JSON object", suggestion="Begin it with {.")
        return values


def _find(name: str, argument: str | None, environ: Mapping[str, str], file: _ConfigFile) -> tuple[str | None, str]:
    """The value, and the place it comes from."""
    if argument is not None:
        if not isinstance(argument, str):
            raise ViConfigurationError(
                f"argument {name} is a {type(argument).__name__}",
                error_code=ViErrorCode.INVALID_PARAMETER,
                suggestion="Give a string.",
            )
        return argument, f"argument {name}"
    variable = _VARIABLES[name]
    if environ.get(variable):
        return environ[variable], f"environment variable {variable}"
    return file.get(name), str(file.path)


def _required(name: str, found: Mapping[str, tuple[str | None, str]]) -> tuple[str, str]:
    value, place = found[name]
    if not value:
        raise ViConfigurationError(
            f"{name} is missing" if value is None else f"{name} is empty ({place})",
            error_code=ViErrorCode.MISSING_REQUIRED_FIELD,
            suggestion=f"Give {name}=..., or set {_VARIABLES[name]}, or name a file with config_file=...; "
            "`runyard up` writes one.",
        )
    return value, place


def _check_key(key: str, *, place: str) -> None:
    if not key.startswith(KEY_PREFIX):
        fault = f"does not begin with {KEY_PREFIX!r}"
    elif len(key) != KEY_LENGTH:
        fault = f"has {len(key)} characters"
    elif not (key.isascii() and key.isprintable() and " " not in key):
        fault = "holds a character no key has"
    else:
        return
    raise ViConfigurationError(
        f"secret_key ({place}) {fault}",
        error_code=ViErrorCode.INVALID_PARAMETER,
        suggestion=f"A key begins with {KEY_PREFIX!r} and has {KEY_LENGTH} characters in all; copy it again.",
    )


def _check_organization(organization_id: str, *, place: str) -> None:
    is_plain = organization_id.isascii() and organization_id.replace("-", "").replace("_", "").isalnum()
    if not is_plain or len(organization_id) > 255:
        raise ViConfigurationError(
            f"organization_id ({place}) is {organization_id[:255]!r}, which is no id",
            error_code=ViErrorCode.INVALID_PARAMETER,
            suggestion="An id is 1 to 255 letters, digits, '_' and '-'.",
        )
