"""Sharing of a client: event loops, threads, processes, pickles, copies."""

import asyncio
import copy
import gc
import json
import multiprocessing
import operator
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vi
from vi._concurrency.asynchronous import current_scope
from vi.api.resources.models.responses import DownloadedModel
from vi.api.resources.runs.responses import Run, RunOutcomes
from vi.api.responses import ConditionKind

CLIENTS = [vi.Client, vi.AsyncClient]


@pytest.fixture
def config_file(key: str, tmp_path: Path) -> Path:
    path = tmp_path / "credentials.json"
    path.write_text(
        json.dumps(
            {"secret_key": key, "organization_id": "lab", "endpoint": "http://server.test:1"}
        )
    )
    return path


@pytest.fixture
def in_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATATURE_VI_SECRET_KEY", key)
    monkeypatch.setenv("DATATURE_VI_ORGANIZATION_ID", "lab")


def test_an_asynchronous_client_works_in_successive_event_loops(
    key: str, byte_server: Any, run_document: Callable[..., Any]
) -> None:
    client = vi.AsyncClient(key, "lab", endpoint=byte_server.endpoint, max_retries=0)

    async def twice() -> None:
        for _ in range(2):
            assert (await client.runs.get("r-1")).condition == "Running"

    with warnings.catch_warnings():
        # The garbage collector closes connections of an ended loop, with a warning.
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            byte_server.documents += [run_document("Running")] * 2
            asyncio.run(twice())
            assert len(client._http._transports) == 1  # those of loops that are closed are dropped
        asyncio.run(client.close())
        assert client._http._transports == {}
        gc.collect()


def test_an_asynchronous_client_works_in_concurrent_event_loops(
    key: str, byte_server: Any, run_document: Callable[..., Any]
) -> None:
    byte_server.documents += [run_document("Running")] * 40
    client = vi.AsyncClient(key, "lab", endpoint=byte_server.endpoint, max_retries=0)
    failures: list[BaseException] = []

    async def ask() -> None:
        for _ in range(10):
            assert (await client.runs.get("r-1")).condition == "Running"
        await client._http._transports.pop(current_scope()).aclose()

    def in_loop() -> None:
        try:
            asyncio.run(ask())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=in_loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_client_created_from_a_file_is_pickled_without_its_key(
    kind: Any, config_file: Path, key: str
) -> None:
    client = kind(config_file=config_file, timeout=5, max_retries=1)
    data = pickle.dumps(client)
    assert key.encode() not in data
    assert key[5:20].encode() not in data
    restored = pickle.loads(data)  # noqa: S301 - our own bytes
    assert (type(restored), restored.organization_id, restored.endpoint) == (
        kind,
        "lab",
        "http://server.test:1",
    )
    assert (restored._http.timeout_s, restored._http.retry.max_retries) == (5, 1)
    assert restored._http._headers == client._http._headers
    assert restored._http._transports == {}
    # Our own bytes.
    assert pickle.loads(pickle.dumps(restored)).endpoint == client.endpoint  # noqa: S301


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_key_of_a_pickled_client_is_looked_up_again(
    kind: Any, config_file: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(kind(config_file=config_file))
    # What it had counts, not what is here now.
    monkeypatch.setenv(
        "DATATURE_VI_SECRET_KEY", "dtvi_" + "e" * 98
    )  # its own values count, not the current ones
    # Our own bytes.
    assert pickle.loads(data)._http._headers["Authorization"] == f"Bearer {key}"  # noqa: S301
    new_key = "dtvi_" + "n" * 98
    config_file.write_text(config_file.read_text().replace(key, new_key))
    # Our own bytes.
    assert pickle.loads(data)._http._headers["Authorization"] == f"Bearer {new_key}"  # noqa: S301
    config_file.unlink()
    with pytest.raises(vi.ViConfigurationError, match="does not exist"):
        pickle.loads(data)  # noqa: S301 - our own bytes


@pytest.mark.usefixtures("in_environment")
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_client_created_from_the_environment_needs_the_variable_when_unpickled(
    kind: Any, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(kind(endpoint="http://server.test:1"))
    assert key.encode() not in data
    assert pickle.loads(data).endpoint == "http://server.test:1"  # noqa: S301 - our own bytes
    monkeypatch.delenv("DATATURE_VI_SECRET_KEY")
    with pytest.raises(vi.ViConfigurationError, match="DATATURE_VI_SECRET_KEY, which is not set"):
        pickle.loads(data)  # noqa: S301 - our own bytes


def test_a_client_can_be_sent_to_a_spawned_process(config_file: Path) -> None:
    client = vi.Client(config_file=config_file)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(operator.attrgetter("endpoint"), [client]) == ["http://server.test:1"]


@pytest.mark.parametrize("kind", CLIENTS)
def test_objects_with_a_key_or_a_connection_are_not_pickled(
    kind: Any, key: str, config_file: Path, server: Any
) -> None:
    with_argument = kind(key, "lab")
    with_transport = kind(config_file=config_file, transport=server.transport)
    by_reference = kind(config_file=config_file)
    for value in (
        with_argument,
        with_transport,
        by_reference.runs,
        by_reference.datasets,
        by_reference._http,
    ):
        with pytest.raises(vi.ViConfigurationError) as raised:
            pickle.dumps(value)
        assert key not in str(raised.value)
        assert raised.value.suggestion


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_copy_has_its_own_connections(kind: Any, copied: Callable[[Any], Any], key: str) -> None:
    client = kind(key, "lab", endpoint="http://server.test:1", timeout=5)
    twin = copied(client)
    assert twin._http is not client._http
    assert twin._http._headers == client._http._headers
    assert (twin.endpoint, twin._http.timeout_s) == (client.endpoint, 5)


def test_responses_and_errors_survive_pickling(run_document: Callable[..., Any]) -> None:
    import msgspec

    run = msgspec.convert(run_document("Pending", "Hibernating"), Run)
    model = DownloadedModel(
        run_id="r", model_id="m", model_path=Path("a"), adapter_path=None, run_config_path=Path("b")
    )
    for value in (run, model, RunOutcomes(), ConditionKind("Hibernating")):
        assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - our own bytes
    error = vi.ViRunFailedError(
        "it failed", run=run, suggestion="look", status_code=409, details={"code": "X"}
    )
    error.cause = threading.Lock()  # type: ignore[assignment]  # as a cause that holds a connection
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (type(again), str(again), again.run, again.code) == (type(error), str(error), run, "X")


def test_every_error_of_the_sdk_can_be_pickled() -> None:
    kinds = [getattr(vi, name) for name in vi.__all__ if name.endswith("Error")]
    assert len(kinds) > 15
    for kind in kinds:
        error = kind(
            "what was wrong", suggestion="what to do", details={"code": "Y"}, retry_after=2.0
        )
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert (type(again), again.to_dict(), again.retry_after) == (kind, error.to_dict(), 2.0)


def test_pickling_a_page_names_the_alternative(key: str, server: Any) -> None:
    server.answers({"items": [], "nextPage": None})
    page = vi.Client(key, "lab", transport=server.transport).runs.list()
    with pytest.raises(vi.ViConfigurationError, match="a page with access to further pages"):
        pickle.dumps(page)
    assert pickle.loads(pickle.dumps(page.items)) == []  # noqa: S301 - our own bytes
