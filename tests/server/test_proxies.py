"""The address, scheme and host of a request, behind a proxy and without one."""

from typing import Any

import pytest

from runyard.server.http.proxies import Proxies, normalize_origin
from runyard.server.services.errors import Refusal
from runyard.settings import SettingError, Settings, read_settings
from tests.support import attempts
from tests.support.server import TestServer

PUBLIC_URL = "https://train.example"


def proxies(**settings: Any) -> Proxies:
    return Proxies(
        Settings(public_url=PUBLIC_URL, trusted_proxies="127.0.0.1,10.0.0.0/8", **settings)
    )


def read(proxies: Proxies, peer: str = "127.0.0.1", **headers: str) -> tuple[str, str]:
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    caller = proxies.read_caller(peer, "http", {b"host": b"train.example", **given})
    return caller.address, caller.origin


def test_forwarded_headers_of_a_trusted_proxy_are_used() -> None:
    forwarded = {"x_forwarded_for": "203.0.113.9", "x_forwarded_proto": "https"}
    assert read(proxies(), **forwarded) == ("203.0.113.9", PUBLIC_URL)
    assert read(proxies(), "::ffff:10.1.2.3", **forwarded) == ("203.0.113.9", PUBLIC_URL)
    without_public_url = Proxies(
        Settings(trusted_proxies="127.0.0.1", allowed_hosts="train.example")
    )
    assert read(without_public_url, **forwarded) == ("203.0.113.9", "https://train.example")


def test_forwarded_headers_of_untrusted_peers_are_ignored() -> None:
    forwarded = {"x_forwarded_for": "203.0.113.9", "x_forwarded_proto": "https"}
    for peer in ("192.0.2.1", "127.0.0.2", "::1", "", "unix:"):
        assert read(proxies(), peer, **forwarded)[0] == peer
    direct = Proxies(Settings(allowed_hosts="train.example"))
    assert read(direct, **forwarded) == ("127.0.0.1", "http://train.example")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.7, 203.0.113.9", "203.0.113.9"),  # the client wrote the part before it
        ("127.0.0.1, 203.0.113.9, 10.2.3.4", "203.0.113.9"),  # two of our own proxies in a row
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        ('"[2001:db8::9]"', "2001:db8::9"),
        ("2001:db8::9", "2001:db8::9"),
        ("10.2.3.4", "127.0.0.1"),
        ("unknown", "127.0.0.1"),
        ("203.0.113.9, _hidden", "127.0.0.1"),
        (",", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy(
    given: str, address: str
) -> None:
    assert read(proxies(), x_forwarded_for=given, x_forwarded_proto="https")[0] == address


def test_a_forwarded_host_is_neither_used_in_links_nor_accepted() -> None:
    assert (
        read(proxies(), x_forwarded_host="evil.example", x_forwarded_for="203.0.113.9")[1]
        == PUBLIC_URL
    )
    with pytest.raises(Refusal, match=r"evil\.example") as caught:
        read(
            proxies(),
            host="evil.example",
            x_forwarded_host="train.example",
            x_forwarded_for="203.0.113.9",
        )
    assert caught.value.code == "InvalidHost"


def test_links_use_the_public_url_except_for_programs_on_this_machine() -> None:
    assert read(proxies())[1] == PUBLIC_URL
    assert read(proxies(), host="127.0.0.1:7878")[1] == "http://127.0.0.1:7878"
    # Many proxies send their own idea of the host.
    assert read(proxies(), host="127.0.0.1:7878", x_forwarded_for="203.0.113.9")[1] == PUBLIC_URL


def test_pages_under_the_public_url_have_the_same_origin() -> None:
    for host in ("train.example", "127.0.0.1:7878"):
        read(proxies(), host=host, origin=PUBLIC_URL, x_forwarded_proto="https")
        for foreign in (
            "http://train.example",
            "https://train.example:444",
            "https://evil.example",
            "null",
            "",
        ):
            with pytest.raises(Refusal) as caught:
                read(proxies(), host=host, origin=foreign, x_forwarded_proto="https")
            assert caught.value.code == "OriginRefused", (host, foreign)


def test_a_default_port_may_be_given_or_omitted() -> None:
    assert normalize_origin("https://Train.example") == normalize_origin(
        "https://train.example:443"
    )
    assert normalize_origin("http://train.example") == normalize_origin("http://train.example:80")
    assert (
        len(
            {
                normalize_origin(f"{scheme}://train.example{port}")
                for scheme in ("http", "https")
                for port in ("", ":1")
            }
        )
        == 4
    )


@pytest.mark.parametrize(
    "url",
    [
        "train.example",
        "ftp://train.example",
        "https://",
        "https://a/b",
        "https://a:x",
        "https://a?q",
    ],
)
def test_an_invalid_public_url_is_rejected(url: str) -> None:
    with pytest.raises(SettingError, match=r"RUNYARD_PUBLIC_URL.*try: "):
        read_settings({"RUNYARD_PUBLIC_URL": url})


@pytest.mark.parametrize("text", ["proxy.example", "127.0.0.1;10.0.0.1", "10.0.0.1/8", "300.1.1.1"])
def test_trusted_proxies_that_are_not_addresses_are_rejected(text: str) -> None:
    with pytest.raises(SettingError, match=r"RUNYARD_TRUSTED_PROXIES.*try: "):
        read_settings({"RUNYARD_TRUSTED_PROXIES": text})


@pytest.mark.settings(public_url=PUBLIC_URL)
async def test_signed_links_begin_with_the_public_url(server: TestServer) -> None:
    await (await attempts.start(server)).checkpoint()
    client = await server.client(server.key, host="train.example")
    model = (await client.get(server.path("runs/r1/outputs/latest?contents=y"))).json()
    link = model["status"]["contents"]["downloadUrl"]["url"]
    assert link.startswith(f"{PUBLIC_URL}/downloads/")
    assert (await client.get(link.removeprefix(PUBLIC_URL))).status_code == 200
