"""Lookup of key, organization and endpoint: argument over environment over configuration file.

The file is ``config_file``, or ``~/.runyard/credentials.json`` if a server of this user wrote one.
Each value is looked up separately and its source is recorded, so that a message can name the source
to correct. The key itself appears in no message. What the file says about certificates counts only
for the endpoint that it names.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vi._http.tls import CA_VARIABLE, Trust
from vi._text import shorten_repr
from vi.errors import ViConfigurationError, ViErrorCode

DEFAULT_ENDPOINT = "http://127.0.0.1:7878/"
DEFAULT_CONFIG_FILE = "~/.runyard/credentials.json"
KEY_PREFIX = "dtvi_"
KEY_LENGTH = 103

VARIABLES = {
    "secret_key": "DATATURE_VI_SECRET_KEY",
    "organization_id": "DATATURE_VI_ORGANIZATION_ID",
    "endpoint": "DATATURE_VI_API_ENDPOINT",
}


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Key, organization, endpoint and certificates of a client, and the source of the key."""

    secret_key: str
    organization_id: str
    endpoint: str
    key_source: Literal["argument", "environment", "file"]
    config_file: Path
    trust: Trust = Trust()

    def reference(self) -> dict[str, str]:
        """Return everything but the key, and where to look the key up again; used by pickle.

        Raises:
            ViConfigurationError: The key was passed as an argument, so it cannot be looked up.
        """
        if self.key_source == "argument":
            raise ViConfigurationError(
                "a client whose secret_key was passed as an argument cannot be pickled: "
                "the pickle would contain the key",
                suggestion=f"try: set {VARIABLES['secret_key']}, or pass config_file=..., in both "
                "processes",
            )
        return {
            "organization_id": self.organization_id,
            "endpoint": self.endpoint,
            "key_source": self.key_source,
            "config_file": str(self.config_file.absolute()),
            "ca": self.trust.ca,
            "certificate": self.trust.certificate,
        }

    def __repr__(self) -> str:
        return f"Credentials(organization_id={self.organization_id!r}, endpoint={self.endpoint!r})"


def find_credentials(
    *,
    secret_key: str | None = None,
    organization_id: str | None = None,
    endpoint: str | None = None,
    config_file: str | Path | None = None,
    ca: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Credentials:
    """Return the credentials, each from the first source that has it.

    ``ca`` is a file of certificates to trust (see ``Trust``).

    Raises:
        ViConfigurationError: A value is missing or malformed.
    """
    arguments = {"secret_key": secret_key, "organization_id": organization_id, "endpoint": endpoint}
    environ = os.environ if environ is None else environ
    file = _ConfigFile(config_file)
    found = {name: _find_value(name, arguments[name], environ, file) for name in arguments}
    key, key_source = _require("secret_key", found)
    organization, organization_source = _require("organization_id", found)
    _check_key(key, source=key_source)
    _check_organization(organization, source=organization_source)
    in_environment = environ.get(VARIABLES["secret_key"])
    used_endpoint = found["endpoint"][0] or DEFAULT_ENDPOINT
    return Credentials(
        secret_key=key,
        organization_id=organization,
        endpoint=used_endpoint,
        key_source="argument"
        if secret_key is not None
        else "environment"
        if in_environment
        else "file",
        config_file=file.path,
        trust=_find_trust(used_endpoint, file, argument=ca, variable=environ.get(CA_VARIABLE)),
    )


def restore_credentials(reference: Mapping[str, str]) -> Credentials:
    """Look up the key of an unpickled client in the source that it came from.

    Raises:
        ViConfigurationError: The source no longer has the key.
    """
    variable = VARIABLES["secret_key"]
    is_in_file = reference["key_source"] == "file"
    if not is_in_file and not os.environ.get(variable):
        raise ViConfigurationError(
            f"the key of the pickled client came from {variable}, which is not set in this process",
            error_code=ViErrorCode.MISSING_REQUIRED_FIELD,
            suggestion=f"try: set {variable} in this process",
        )
    found = find_credentials(
        organization_id=reference["organization_id"],
        endpoint=reference["endpoint"],
        config_file=reference["config_file"] if is_in_file else None,
        environ={} if is_in_file else None,
    )
    trust = Trust(ca=reference.get("ca", ""), certificate=reference.get("certificate", ""))
    return replace(found, trust=trust)


def check_connection(*, timeout: object, max_retries: object) -> None:
    """Check the timeout and the number of retries.

    Raises:
        ViConfigurationError: One of them is not a number, or out of range.
    """
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not is_number or not 0 < timeout <= 86_400:  # type: ignore[operator]
        raise ViConfigurationError(
            f"timeout is {shorten_repr(timeout)}, expected: seconds, more than 0 and at most 86400",
            error_code=ViErrorCode.INVALID_PARAMETER,
            suggestion="try: timeout=60",
        )
    if (
        not isinstance(max_retries, int)
        or isinstance(max_retries, bool)
        or not 0 <= max_retries <= 1000
    ):
        raise ViConfigurationError(
            f"max_retries is {shorten_repr(max_retries)}, expected: an integer from 0 to 1000",
            error_code=ViErrorCode.INVALID_PARAMETER,
            suggestion="try: max_retries=3; 0 disables retries",
        )


class _ConfigFile:
    """Configuration file, read on the first lookup."""

    def __init__(self, named: str | Path | None) -> None:
        self._is_named = named is not None
        try:
            self.path = Path(DEFAULT_CONFIG_FILE if named is None else named).expanduser()
        except (TypeError, RuntimeError) as error:
            raise ViConfigurationError(
                f"config_file is {shorten_repr(named)}, expected: a path",
                suggestion="try: a string or a pathlib.Path",
                cause=error,
            ) from error
        self._values: dict[str, object] | None = None

    def get(self, name: str) -> str | None:
        if self._values is None:
            self._values = self._read()
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value or None
        raise ViConfigurationError(
            f"{name} in {self.path} is a {type(value).__name__}, expected: a string",
            suggestion="try: quote the value",
        )

    def _read(self) -> dict[str, object]:
        try:
            values = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError as error:
            if not self._is_named:
                return {}
            raise ViConfigurationError(
                f"config_file {self.path} does not exist",
                suggestion="try: check the path",
                cause=error,
            ) from error
        except (OSError, ValueError) as error:
            raise ViConfigurationError(
                f"{self.path} cannot be read as JSON ({type(error).__name__})",
                suggestion='try: {"secret_key": "...", "organization_id": "...", "endpoint": '
                '"..."}',
                cause=error if isinstance(error, OSError) else None,
            ) from None
        if not isinstance(values, dict):
            raise ViConfigurationError(
                f"{self.path} does not contain a JSON object",
                suggestion='try: {"secret_key": "...", "organization_id": "...", "endpoint": '
                '"..."}',
            )
        return values


def _find_trust(
    endpoint: str, file: _ConfigFile, *, argument: str | None, variable: str | None
) -> Trust:
    """Return the certificates to accept from the server at ``endpoint``.

    What the file says is about this server, while a variable may be meant for others.
    """
    if argument or not endpoint.startswith("https:"):
        return Trust(ca=argument or "")
    if (file.get("endpoint") or "").rstrip("/") != endpoint.rstrip("/"):
        return Trust(ca=variable or "")
    return Trust(ca=file.get("ca") or variable or "", certificate=file.get("certificate") or "")


def _find_value(
    name: str, argument: str | None, environ: Mapping[str, str], file: _ConfigFile
) -> tuple[str | None, str]:
    """Return a value and the source that it comes from."""
    if argument is not None:
        if not isinstance(argument, str):
            raise ViConfigurationError(
                f"argument {name} is a {type(argument).__name__}, expected: a string",
                error_code=ViErrorCode.INVALID_PARAMETER,
                suggestion=f"try: {name}='...'",
            )
        return argument, f"argument {name}"
    variable = VARIABLES[name]
    if environ.get(variable):
        return environ[variable], f"environment variable {variable}"
    return file.get(name), str(file.path)


def _require(name: str, found: Mapping[str, tuple[str | None, str]]) -> tuple[str, str]:
    value, source = found[name]
    if not value:
        raise ViConfigurationError(
            f"{name} is missing" if value is None else f"{name} is empty ({source})",
            error_code=ViErrorCode.MISSING_REQUIRED_FIELD,
            suggestion=f"try: {name}=..., or set {VARIABLES[name]}, or config_file=... with the "
            "file that `runyard up` writes",
        )
    return value, source


def _check_key(key: str, *, source: str) -> None:
    if not key.startswith(KEY_PREFIX):
        problem = f"does not begin with {KEY_PREFIX!r}"
    elif len(key) != KEY_LENGTH:
        problem = f"has {len(key)} characters"
    elif not (key.isascii() and key.isprintable() and " " not in key):
        problem = "contains a character that keys do not have"
    else:
        return
    raise ViConfigurationError(
        f"secret_key ({source}) {problem}",
        error_code=ViErrorCode.INVALID_PARAMETER,
        suggestion=f"try: copy the key again; it begins with {KEY_PREFIX!r} and has {KEY_LENGTH} "
        "characters",
    )


def _check_organization(organization_id: str, *, source: str) -> None:
    is_plain = (
        organization_id.isascii() and organization_id.replace("-", "").replace("_", "").isalnum()
    )
    if not is_plain or len(organization_id) > 255:
        raise ViConfigurationError(
            f"organization_id ({source}) is {organization_id[:255]!r}, expected: 1 to 255 letters, "
            "digits, '_' and '-'",
            error_code=ViErrorCode.INVALID_PARAMETER,
            suggestion="try: the organization_id of the credentials.json that `runyard up` wrote",
        )
