"""Plain HTTP beyond loopback needs a permission, on either end."""

from pathlib import Path

import pytest

from runyard.security.transport import check_bind, check_transport, is_loopback
from runyard.settings import SettingError, read_settings


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://127.0.0.1:7878/", True),
        ("http://127.8.9.1/", True),
        ("http://[::1]:7878/", True),
        ("http://localhost:7878/", True),
        ("http://LOCALHOST/", True),
        ("http://127.0.0.1.example/", False),
        ("http://localhost.example/", False),
        ("http://10.0.0.1/", False),
        ("http://[::ffff:10.0.0.1]/", False),
        ("http://train.example/", False),
        ("http://0.0.0.0/", False),
        ("", False),
    ],
)
def test_loopback_is_an_address_of_this_machine_alone(endpoint: str, expected: bool) -> None:
    assert is_loopback(endpoint) is expected


@pytest.mark.parametrize("endpoint", ["https://train.example/", "http://127.0.0.1:7878/"])
def test_tls_and_loopback_need_no_permission(endpoint: str) -> None:
    check_transport(endpoint, insecure=False)


def test_a_key_is_not_sent_over_a_network_in_clear_text() -> None:
    with pytest.raises(SettingError, match=r"http://train\.example/ .*try: .*RUNYARD_INSECURE=1"):
        check_transport("http://train.example/", insecure=False)
    check_transport("http://train.example/", insecure=True)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, False), ({"insecure": "1"}, True), ({"insecure_bind": "1"}, True)]
)
def test_a_server_that_may_listen_without_tls_may_be_reached_by_its_controller(
    given: dict[str, str], expected: bool
) -> None:
    assert read_settings({}, **given).allows_plain_http is expected


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_listening_on_loopback_needs_no_permission(host: str, tmp_path: Path) -> None:
    check_bind(read_settings({}, data_dir=tmp_path, host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "127.example"])  # noqa: S104
def test_listening_beyond_loopback_needs_tls_or_a_permission(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--tls-cert.*--insecure-bind"):
        check_bind(read_settings({}, data_dir=tmp_path, host=host))
    check_bind(read_settings({}, data_dir=tmp_path, host=host, insecure_bind=True))
    check_bind(read_settings({}, data_dir=tmp_path, host=host, tls_cert="c", tls_key="k"))
