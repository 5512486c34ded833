"""Requests: their contents, retries and errors."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

import vi
from vi._http import NO_RETRY, AsyncHttp, RetryPolicy
from vi.api.resources.runs.responses import LogLine

pytestmark = pytest.mark.anyio


@pytest.fixture
def http(server: Any, clock: Any) -> AsyncHttp:
    return AsyncHttp(
        "http://server.test:1/",
        headers={"Authorization": "Bearer k"},
        transport=server.transport,
        sleep=clock.async_sleep,
        random=lambda: 1.0,
    )


async def test_a_body_is_sent_as_json_and_the_response_is_decoded(
    http: AsyncHttp, server: Any
) -> None:
    line = LogLine(number=1, time=2, attempt=1, stream="stdout", text="Zeile ü")
    server.answers({"number": 5})
    answer = await http.call(
        "POST", "/lines", params={"a": 1, "b": None, "c": True}, body=line, decode_as=dict[str, int]
    )
    request = server.requests[0]
    assert answer == {"number": 5}
    assert str(request.url) == "http://server.test:1/lines?a=1&c=true"
    sent = '{"number":1,"time":2,"attempt":1,"stream":"stdout","text":"Zeile ü","level":"info"}'
    assert request.content == sent.encode()
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["user-agent"].startswith(f"vi/{vi.__version__} (Python/")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
async def test_repeatable_requests_are_repeated_after_server_failures(
    http: AsyncHttp, server: Any, clock: Any, method: str, status: int
) -> None:
    server.answers(status=status)
    server.answers(status=status)
    server.answers({})
    await http.call(method, "/x")
    assert clock.slept == [1, 2]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_other_requests_are_not_repeated_after_server_failures(
    http: AsyncHttp, server: Any, method: str
) -> None:
    server.answers({"message": "boom"}, status=500)
    with pytest.raises(vi.ViServerError, match="boom"):
        await http.call(method, "/x")
    server.breaks()
    with pytest.raises(vi.ViNetworkError):
        await http.call(method, "/x")
    assert len(server.requests) == 2


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
async def test_a_refused_connection_or_a_busy_server_had_no_effect_so_all_is_repeated(
    http: AsyncHttp, server: Any, clock: Any, method: str
) -> None:
    server.refuses_connections()
    server.answers(status=429, headers={"Retry-After": "7"})
    server.answers({})
    await http.call(method, "/x")
    assert clock.slept == [1, 7]


async def test_a_post_that_may_happen_twice_can_say_so(http: AsyncHttp, server: Any) -> None:
    server.breaks()
    server.answers({})
    await http.call("POST", "/renew", idempotent=True)
    assert server.asked == ["POST /renew"] * 2


async def test_retry_after_is_respected_on_503_but_not_on_500(
    http: AsyncHttp, server: Any, clock: Any
) -> None:
    server.answers(status=503, headers={"Retry-After": "30"})
    server.answers(status=500, headers={"Retry-After": "30"})
    server.answers({})
    await http.call("GET", "/x")
    assert clock.slept == [30, 2]


async def test_exhausted_retries_raise_the_last_error(
    http: AsyncHttp, server: Any, clock: Any
) -> None:
    for _ in range(4):
        server.answers({"message": "still down", "code": "StorageUnavailable"}, status=503)
    with pytest.raises(vi.ViServerError, match="still down") as raised:
        await http.call("GET", "/x")
    assert (raised.value.code, len(clock.slept)) == ("StorageUnavailable", 3)


async def test_no_retry_sends_one_request(http: AsyncHttp, server: Any, clock: Any) -> None:
    server.answers(status=429)
    with pytest.raises(vi.ViRateLimitError):
        await http.call("GET", "/x", retry=NO_RETRY)
    assert clock.slept == []


async def test_a_deletion_whose_response_was_lost_succeeds_on_not_found(
    http: AsyncHttp, server: Any
) -> None:
    server.breaks()
    server.answers({"message": "not found"}, status=404)
    answer = await http.send("DELETE", "/x")
    assert answer.tries == 2


async def test_a_deletion_that_never_arrived_fails_on_not_found(
    http: AsyncHttp, server: Any
) -> None:
    server.answers(status=429)
    server.refuses_connections()
    server.answers({"message": "not found"}, status=404)
    with pytest.raises(vi.ViNotFoundError):
        await http.send("DELETE", "/x")


async def test_a_missing_response_is_a_network_error_without_a_status(
    http: AsyncHttp, server: Any
) -> None:
    server.refuses_connections()
    with pytest.raises(
        vi.ViNetworkError, match=r"GET /x to http://server\.test:1 got no response"
    ) as raised:
        await http.call("GET", "/x", retry=NO_RETRY)
    assert raised.value.status_code is None
    assert isinstance(raised.value.__cause__, httpx2.ConnectError)


async def test_a_late_response_is_a_timeout(http: AsyncHttp, server: Any) -> None:
    server.breaks(httpx2.ReadTimeout("timed out"))
    with pytest.raises(vi.ViTimeoutError, match=r"within 2\.5 s"):
        await http.call("GET", "/x", retry=NO_RETRY, timeout_s=2.5)
    assert server.requests[0].extensions["timeout"]["read"] == 2.5


async def test_a_response_of_another_shape_is_an_operation_error(
    http: AsyncHttp, server: Any
) -> None:
    server.answers({"number": "five"})
    with pytest.raises(
        vi.ViOperationError, match="the response to GET /x is not the expected document"
    ) as raised:
        await http.call("GET", "/x", decode_as=dict[str, int])
    assert raised.value.status_code is None


async def test_head_reports_existence(http: AsyncHttp, server: Any) -> None:
    server.answers()
    server.answers(status=404)
    assert [await http.exists("/blobs/a"), await http.exists("/blobs/b")] == [True, False]


async def test_a_file_is_sent_completely_on_each_retry(
    http: AsyncHttp, server: Any, tmp_path: Path
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w" * 3_000_000)
    server.answers(status=500)
    server.answers(status=201)
    await http.put_file("/blobs/a", file)
    assert [len(request.content) for request in server.requests] == [3_000_000] * 2
    assert server.requests[1].headers["content-length"] == "3000000"


async def test_a_closed_client_raises(http: AsyncHttp) -> None:
    await http.close()
    with pytest.raises(vi.ViOperationError, match="closed"):
        await http.call("GET", "/x")


async def test_signed_links_are_requested_without_the_key(http: AsyncHttp, server: Any) -> None:
    server.answers()
    await http.without_credentials("http://blobs.test").send("HEAD", "/x")
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    "endpoint", ["", "127.0.0.1:7878", "ftp://host/", "http://", "http://h:99999/", "http://h/?a=b"]
)
async def test_an_invalid_endpoint_is_rejected_at_once(endpoint: str) -> None:
    with pytest.raises(vi.ViConfigurationError, match="the endpoint is"):
        AsyncHttp(endpoint)


@pytest.mark.parametrize("endpoint", ["http://me:s3cret@host/", "http://s3cret@host:99999/"])
async def test_an_endpoint_with_a_password_is_refused_without_showing_it(endpoint: str) -> None:
    with pytest.raises(vi.ViConfigurationError, match="user name or a password") as raised:
        AsyncHttp(endpoint)
    assert "s3cret" not in str(raised.value)


async def test_rate_limits_have_their_own_retry_budget(server: Any, clock: Any) -> None:
    http = AsyncHttp(
        "http://server.test",
        transport=server.transport,
        sleep=clock.async_sleep,
        retry=RetryPolicy(max_retries=1, max_rate_limit_retries=2),
    )
    server.answers(status=429)
    server.answers(status=500)
    server.answers(status=429)
    server.answers({})
    await http.call("GET", "/x")
    assert len(server.requests) == 4
