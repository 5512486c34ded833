"""Lookup of key, organization and endpoint, and messages about missing or wrong values."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vi
from vi._client.credentials import DEFAULT_ENDPOINT, find_credentials
from vi._http import Trust


def key(letter: str) -> str:
    return "dtvi_" + letter * 98


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(values: Any, path: Path = tmp_path / "credentials.json") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), "utf-8")
        return path

    return write


ENVIRON = {
    "DATATURE_VI_SECRET_KEY": key("e"),
    "DATATURE_VI_ORGANIZATION_ID": "env-org",
    "DATATURE_VI_API_ENDPOINT": "http://env:1/",
}
FILE = {"secret_key": key("f"), "organization_id": "file-org", "endpoint": "http://file:1/"}


def test_arguments_win_over_environment_over_file(write: Callable[..., Path]) -> None:
    file = write(FILE)
    argument = find_credentials(
        secret_key=key("a"), endpoint="http://a:1/", environ=ENVIRON, config_file=file
    )
    assert (argument.secret_key, argument.organization_id, argument.endpoint) == (
        key("a"),
        "env-org",
        "http://a:1/",
    )
    assert find_credentials(environ=ENVIRON, config_file=file).secret_key == key("e")
    found = find_credentials(environ={}, config_file=file)
    assert (found.secret_key, found.organization_id, found.endpoint) == tuple(FILE.values())


def test_each_value_is_looked_up_separately(write: Callable[..., Path]) -> None:
    found = find_credentials(
        environ={"DATATURE_VI_ORGANIZATION_ID": "env-org"},
        config_file=write({"secret_key": key("f")}),
    )
    assert (found.secret_key, found.organization_id, found.endpoint) == (
        key("f"),
        "env-org",
        DEFAULT_ENDPOINT,
    )


def test_the_credentials_file_of_the_users_own_server_is_the_default(
    write: Callable[..., Path],
) -> None:
    write(FILE, Path("~/.runyard/credentials.json").expanduser())
    assert find_credentials(environ={}).organization_id == "file-org"


def test_an_empty_variable_counts_as_not_set(write: Callable[..., Path]) -> None:
    found = find_credentials(environ={"DATATURE_VI_SECRET_KEY": ""}, config_file=write(FILE))
    assert found.secret_key == key("f")


def test_the_client_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    client = vi.Client()
    assert (client.organization_id, client.endpoint) == ("env-org", "http://env:1")


@pytest.mark.parametrize("missing", ["secret_key", "organization_id"])
def test_a_missing_value_is_reported_with_every_suggestion(
    write: Callable[..., Path], missing: str
) -> None:
    file = write({name: value for name, value in FILE.items() if name != missing})
    with pytest.raises(vi.ViConfigurationError, match=f"{missing} is missing") as raised:
        find_credentials(environ={}, config_file=file)
    assert raised.value.error_code is vi.ViErrorCode.MISSING_REQUIRED_FIELD
    assert f"DATATURE_VI_{missing.upper()}" in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ("sk-" + "s3cret" * 20, "does not begin with 'dtvi_'"),
        ("dtvi_s3cret", "has 11 characters"),
        ("dtvi_s3cret" + "k" * 93, "has 104 characters"),
        ("dtvi_s3cret" + "k" * 91 + "\n", "contains a character that keys do not have"),
        ("dtvi_s3cret" + "k" * 91 + "ü", "contains a character that keys do not have"),
    ],
)
def test_a_malformed_key_is_reported_by_source_and_problem_but_never_shown(
    wrong: str, fault: str
) -> None:
    with pytest.raises(vi.ViConfigurationError) as raised:
        find_credentials(environ={**ENVIRON, "DATATURE_VI_SECRET_KEY": wrong})
    assert raised.value.error_code is vi.ViErrorCode.INVALID_PARAMETER
    assert f"secret_key (environment variable DATATURE_VI_SECRET_KEY) {fault}" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_the_file_is_named_when_its_key_is_wrong(write: Callable[..., Path]) -> None:
    file = write({**FILE, "secret_key": "oops"})
    with pytest.raises(vi.ViConfigurationError, match=r"credentials\.json"):
        find_credentials(environ={}, config_file=file)


@pytest.mark.parametrize("organization_id", ["a/b", "..", "a b", "ü", "x" * 256])
def test_an_invalid_organization_id_is_rejected(organization_id: str) -> None:
    with pytest.raises(
        vi.ViConfigurationError, match=r"organization_id \(argument organization_id\)"
    ):
        find_credentials(secret_key=key("a"), organization_id=organization_id, environ={})


def test_an_empty_argument_does_not_fall_back() -> None:
    with pytest.raises(
        vi.ViConfigurationError, match=r"secret_key is empty \(argument secret_key\)"
    ):
        find_credentials(secret_key="", environ=ENVIRON)


def test_an_explicit_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(vi.ViConfigurationError, match="does not exist"):
        find_credentials(environ={}, config_file=tmp_path / "none.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"secret_key": 5}', '{"secret_key": "s3cret"'])
def test_an_unreadable_file_is_reported_without_its_contents(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(vi.ViConfigurationError, match=r"c\.json") as raised:
        find_credentials(environ={}, config_file=path)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_client_shows_no_key() -> None:
    client = vi.Client(key("a"), "lab")
    found = find_credentials(secret_key=key("a"), organization_id="lab", environ={})
    assert key("a") not in repr(client) + repr(found) + repr(client._http)


def test_an_invalid_endpoint_is_rejected() -> None:
    with pytest.raises(vi.ViConfigurationError, match="the endpoint is 'localhost:7878'"):
        vi.Client(key("a"), "lab", endpoint="localhost:7878")


SECURE = {**FILE, "endpoint": "https://file:1/", "ca": "/ca.pem", "certificate": "/own.pem"}


def test_the_file_says_what_to_trust_for_its_own_endpoint_alone(
    write: Callable[..., Path],
) -> None:
    file = write(SECURE)
    own = Trust(ca="/ca.pem", certificate="/own.pem")
    assert find_credentials(environ={}, config_file=file).trust == own
    same = find_credentials(environ={}, config_file=file, endpoint="https://file:1")
    assert same.trust == own
    for endpoint in ("https://other:1/", "https://file:2/"):
        other = find_credentials(environ={}, config_file=file, endpoint=endpoint)
        assert other.trust == Trust()


def test_the_variable_is_for_servers_of_which_the_file_says_nothing(
    write: Callable[..., Path],
) -> None:
    environ = {"RUNYARD_CA": "/variable.pem"}
    file = write(SECURE)
    assert find_credentials(environ=environ, config_file=file).trust.ca == "/ca.pem"
    other = find_credentials(environ=environ, config_file=file, endpoint="https://other/")
    assert other.trust == Trust(ca="/variable.pem")
    bare = write({**FILE, "endpoint": "https://file:1/"})
    assert find_credentials(environ=environ, config_file=bare).trust == Trust(ca="/variable.pem")


def test_an_argument_wins_over_what_the_file_says(write: Callable[..., Path]) -> None:
    found = find_credentials(
        environ={"RUNYARD_CA": "/variable.pem"}, config_file=write(SECURE), ca="/argument.pem"
    )
    assert found.trust == Trust(ca="/argument.pem")


def test_a_pickled_client_trusts_the_same_certificates(write: Callable[..., Path]) -> None:
    client = vi.Client(config_file=write(SECURE))
    restored = pickle.loads(pickle.dumps(client))  # noqa: S301
    assert restored._http.trust == Trust(ca="/ca.pem", certificate="/own.pem")
