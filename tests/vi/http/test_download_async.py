"""Downloads over real connections that are cut, refused, damaged or misdirected."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import vi
from vi._http import AsyncHttp, RetryPolicy
from vi._http.downloads._async import download_file
from vi._http.downloads.part_file import PartFile

pytestmark = pytest.mark.anyio


@pytest.fixture
async def http(byte_server: Any, clock: Any) -> AsyncIterator[AsyncHttp]:
    http = AsyncHttp(
        byte_server.endpoint,
        headers={"Authorization": "Bearer k"},
        retry=RetryPolicy(max_retries=2),
        sleep=clock.async_sleep,
    )
    yield http
    await http.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.tar"


async def fetch(http: AsyncHttp, byte_server: Any, target: Path, **changes: Any) -> list[int]:
    progress: list[int] = []
    options = {"size_bytes": len(byte_server.content), "sha256": byte_server.sha256, **changes}
    await download_file(http, byte_server.url, target, on_progress=progress.append, **options)
    return progress


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


async def test_a_download_is_complete_and_leaves_no_other_file(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    progress = await fetch(http, byte_server, target)
    assert target.read_bytes() == byte_server.content
    assert names(target) == ["model.tar"]
    assert progress[-1] == len(byte_server.content)
    assert all("Authorization" not in headers for headers in byte_server.headers_seen)


async def test_an_interrupted_connection_resumes_where_it_stopped(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [1000, 2000]
    await fetch(http, byte_server, target)
    assert target.read_bytes() == byte_server.content
    assert byte_server.ranges == ["bytes=0-", "bytes=1000-", "bytes=3000-"]


async def test_each_interruption_after_progress_renews_the_retry_budget(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [1000] * 20
    await fetch(http, byte_server, target)
    assert target.read_bytes() == byte_server.content


async def test_a_stalled_download_fails_and_keeps_its_partial_file(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [1000, 0, 0, 0]
    with pytest.raises(vi.ViDownloadError, match="after 1000 bytes, which are kept"):
        await fetch(http, byte_server, target)
    assert names(target) == ["model.tar.part", "model.tar.part.json"]
    await fetch(http, byte_server, target)
    assert byte_server.ranges[-1] == "bytes=1000-"
    assert target.read_bytes() == byte_server.content


async def test_a_partial_file_of_another_download_is_not_resumed(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [1000, 0, 0, 0]
    with pytest.raises(vi.ViDownloadError):
        await fetch(http, byte_server, target)
    byte_server.content = byte_server.content[::-1]
    await fetch(http, byte_server, target)
    assert byte_server.ranges[-1] == "bytes=0-"
    assert target.read_bytes() == byte_server.content


async def test_bytes_that_were_damaged_on_disk_are_fetched_again(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [1000, 0, 0, 0]
    with pytest.raises(vi.ViDownloadError):
        await fetch(http, byte_server, target)
    part = target.with_name("model.tar.part")
    part.write_bytes(b"x" + part.read_bytes()[1:])
    await fetch(http, byte_server, target)
    assert byte_server.ranges[-2:] == ["bytes=1000-", "bytes=0-"]
    assert target.read_bytes() == byte_server.content


async def test_wrong_bytes_are_discarded(http: AsyncHttp, byte_server: Any, target: Path) -> None:
    with pytest.raises(vi.ViDownloadError, match="damaged"):
        await fetch(http, byte_server, target, sha256="0" * 64)
    assert names(target) == []


async def test_a_wrong_length_is_rejected_before_anything_is_fetched(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    with pytest.raises(vi.ViDownloadError, match="expected: 5"):
        await fetch(http, byte_server, target, size_bytes=5)
    assert byte_server.ranges == []


async def test_a_server_without_ranges_starts_over(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [1000, "no-ranges"]
    await fetch(http, byte_server, target)
    assert target.read_bytes() == byte_server.content


async def test_an_unrequested_range_is_rejected(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = ["wrong-range"]
    with pytest.raises(vi.ViDownloadError, match="requested bytes from 0"):
        await fetch(http, byte_server, target)
    assert not target.exists()


async def test_a_busy_server_is_waited_for(
    http: AsyncHttp, byte_server: Any, target: Path, clock: Any
) -> None:
    byte_server.faults = [(503, {"Retry-After": "9"}), (429, {"Retry-After": "4"})]
    await fetch(http, byte_server, target)
    assert clock.slept == [9, 4]


async def test_an_expired_link_fails_loudly_and_stays_secret(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.faults = [(403, {})]
    with pytest.raises(vi.ViDownloadError, match="new link") as raised:
        await fetch(http, byte_server, target)
    assert raised.value.status_code == 403
    assert "s3cret" not in f"{raised.value} {raised.value.__cause__}"
    assert not target.exists()


async def test_without_a_hash_a_strong_etag_names_the_file(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    byte_server.etag = '"v1"'
    byte_server.faults = [1000, 0, 0, 0]
    with pytest.raises(vi.ViDownloadError):
        await fetch(http, byte_server, target, sha256=None)
    await fetch(http, byte_server, target, sha256=None)
    assert byte_server.ranges[-1] == "bytes=1000-"


async def test_two_downloads_of_one_file_do_not_mix(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    with (
        PartFile(target, identity="a", size_bytes=10),
        pytest.raises(vi.ViDownloadError, match="another process is downloading"),
    ):
        await fetch(http, byte_server, target)


async def test_a_partial_file_larger_than_the_download_is_discarded(
    http: AsyncHttp, byte_server: Any, target: Path
) -> None:
    size = len(byte_server.content)
    target.with_name("model.tar.part").write_bytes(b"x" * (size + 1))
    state = {"identity": byte_server.sha256, "sizeBytes": size}
    target.with_name("model.tar.part.json").write_text(json.dumps(state), "utf-8")
    await fetch(http, byte_server, target)
    assert target.read_bytes() == byte_server.content


async def test_more_bytes_than_announced_are_refused(target: Path) -> None:
    with PartFile(target, identity="a", size_bytes=4) as part:
        part.write(b"abcd")
        with pytest.raises(vi.ViDownloadError, match="more than the announced 4 bytes"):
            part.write(b"e")
        assert part.is_whole
