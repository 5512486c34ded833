"""Real connections: none opened early, left open or shared with a child process."""

import gc
import os
import socket
import threading
from typing import Any

import pytest

import vi
from vi._http import NO_RETRY, Http
from vi._http.requests import find_proxy


def test_nothing_is_opened_before_the_first_request() -> None:
    http = Http("http://127.0.0.1:9")
    assert http._transports == {}


def test_a_closed_port_is_a_network_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        http = Http(f"http://127.0.0.1:{taken.getsockname()[1]}", retry=NO_RETRY)
        with pytest.raises(vi.ViNetworkError, match="runyard up"):
            http.call("GET", "/health")
    http.close()


def test_a_connection_cut_without_an_answer_is_a_network_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        http = Http(f"http://127.0.0.1:{listener.getsockname()[1]}", retry=NO_RETRY)
        with pytest.raises(vi.ViNetworkError):
            http.call("GET", "/x")
        thread.join()
    http.close()


def test_a_response_that_never_comes_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = Http(f"http://127.0.0.1:{listener.getsockname()[1]}", retry=NO_RETRY, timeout_s=0.05)
        with pytest.raises(vi.ViTimeoutError):
            http.call("GET", "/x")
    http.close()


def test_a_garbage_collected_client_closes_its_connections(byte_server: Any) -> None:
    http = Http(byte_server.endpoint)
    http.exists("/x")
    transports = http._transports
    assert transports
    del http
    gc.collect()
    assert transports == {}


def test_threads_share_one_client(byte_server: Any) -> None:
    found: list[bool] = []
    with vi.Client("dtvi_" + "k" * 98, "lab", endpoint=byte_server.endpoint) as client:
        threads = [
            threading.Thread(target=lambda: found.append(client._http.exists("/x")))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(client._http._transports) == 1
    assert found == [True] * 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_gets_its_own_connections(byte_server: Any) -> None:
    http = Http(byte_server.endpoint)
    assert http.exists("/parent")
    child = os.fork()
    if child == 0:
        try:
            works = (
                http.exists("/child")
                and os.getpid() in http._transports
                and len(http._transports) == 2
            )
        finally:
            os._exit(0 if works else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert http.exists("/parent-again")
    http.close()


def test_this_machine_is_never_reached_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "near.test")
    endpoints = [
        "http://127.0.0.1:7878",
        "http://localhost:1",
        "http://[::1]:1",
        "http://near.test",
        "http://far.test",
    ]
    assert [find_proxy(endpoint) for endpoint in endpoints] == [
        None,
        None,
        None,
        None,
        "http://proxy.test:3128",
    ]
