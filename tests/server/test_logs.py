"""Pages of a log in both directions, filters and search, and the log as a file."""

import asyncio
import gzip
import json
import random
import re
from functools import partial
from typing import Any

import pytest

from runyard.server.services.runs.telemetry import logs
from runyard.server.services.runs.telemetry.levels import LEVELS, derive_level
from runyard.server.services.runs.telemetry.log_search import (
    build_signature,
    find_literals,
    list_bits,
    may_match,
    parse_search,
)
from runyard.store.telemetry import log_blocks
from runyard.store.telemetry import logs as log_rows
from tests.support import attempts
from tests.support.server import TestServer

chance = random.Random(3)  # noqa: S311
WORDS = ("alpha", "Bravo", "100%", "under_score", "sla/sh", "Übung", "naïve", "nan", "x" * 40)


async def get(server: TestServer, **query: Any) -> Any:
    return (await (await server.api()).get(server.path("runs/r1/logs"), params=query)).json()


async def collect(server: TestServer, *, backward: bool, **query: Any) -> list[int]:
    """Return the numbers of every matching line, page by page, oldest first."""
    found: list[int] = []
    position: dict[str, int] = {"tail": 1000} if backward else {"since": 0}
    while True:
        page = await get(server, **position, **query)
        numbers = [line["number"] for line in page["items"]]
        found = numbers + found if backward else found + numbers
        if not page["hasMore"]:
            assert not backward or page["previous"] is None
            return found
        position = {"before": page["previous"]} if backward else {"since": page["next"]}


async def ship_words(server: TestServer, count: int) -> list[str]:
    """Ship lines of random words, several to a shipment; return them."""
    attempt = await attempts.start(server)
    lines = [" ".join(chance.choices(WORDS, k=3)) + f" {n}" for n in range(1, count + 1)]
    for start in range(0, count, 700):
        assert (await attempt.ship(*lines[start : start + 700], stream="stdout")).is_success
    return lines


async def test_the_log_is_read_from_its_end_upward(server: TestServer) -> None:
    await ship_words(server, 25)
    page = await get(server, tail=10)
    assert [line["number"] for line in page["items"]] == list(range(16, 26))
    assert (page["next"], page["previous"], page["last"], page["ended"]) == (25, 16, 25, False)
    page = await get(server, before=16, limit=12)
    assert [line["number"] for line in page["items"]] == list(range(4, 16))
    assert (page["next"], page["previous"]) == (15, 4)
    page = await get(server, before=4, limit=12)
    assert ([line["number"] for line in page["items"]], page["previous"]) == ([1, 2, 3], None)
    assert (await get(server, before=1))["items"] == []
    assert (await get(server, since=5, limit=2))["previous"] == 6
    assert (await get(server, since=0, limit=2))["previous"] is None
    assert (await get(server, since=99))["next"] == 99


async def test_a_page_of_a_trimmed_log_ends_at_its_first_line(server: TestServer) -> None:
    await ship_words(server, 30)
    trim = partial(log_rows.trim_log, org=server.org, run_id="r1", limit=20)
    assert await server.services.store.write(trim) == 20
    assert await collect(server, backward=True, limit=4) == list(range(21, 31))
    assert await collect(server, backward=False, limit=4) == list(range(21, 31))
    assert (await get(server, since=20))["previous"] is None


SEARCHES: tuple[tuple[dict[str, str], str], ...] = (
    ({"search": "bravo"}, "(?i)bravo"),
    ({"search": "bravo", "case": "true"}, "bravo"),
    ({"search": "Bravo 100%", "case": "true"}, "Bravo 100%"),
    ({"search": "under_score"}, "under_score"),
    ({"search": "underXscore"}, "underXscore"),
    ({"search": "a/sh"}, "a/sh"),
    ({"search": "ÜBUNG"}, "(?i)übung"),
    ({"search": "ïve nan"}, "ïve nan"),
    ({"search": "7"}, "7"),
    ({"search": "nan .*1[0-9]{3}$", "regex": "true"}, "nan .*1[0-9]{3}$"),
    ({"search": "^nan|ALPHA 20", "regex": "true"}, "(?i)^nan|alpha 20"),
    ({"search": "^nan|alpha 20", "regex": "true", "case": "true"}, "^nan|alpha 20"),
    ({"search": "sla/sh 2047", "regex": "true"}, "sla/sh 2047"),
    (
        {"search": r"^[a-z]+ [^ ]+ nan 2\d+$", "regex": "true", "case": "true"},
        "^[a-z]+ [^ ]+ nan 2",
    ),
    ({"search": r"\An.n .* 1\d*7\z", "regex": "true"}, r"\Anan .* 1\d*7$"),
)


async def test_a_search_finds_exactly_the_matching_lines(server: TestServer) -> None:
    lines = await ship_words(server, 2300)
    for query, expected in SEARCHES:
        matching = [number for number, line in enumerate(lines, 1) if re.search(expected, line)]
        for backward in (False, True):
            found = await collect(server, backward=backward, limit=300, **query)
            assert found == matching, (query, backward)


async def test_a_long_search_is_continued_where_it_stopped(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any time left a request looks at one part; the cursor leads through all of them."""
    lines = await ship_words(server, 2300)
    for name, value in (("BUDGET_S", 0), ("PART_S", 0), ("RANGE_LINES", 90), ("PART_LINES", 1500)):
        monkeypatch.setattr(logs, name, value)
    for pattern in ("[0-9]+00$", "alpha", "absent"):
        query = {"search": pattern, "regex": "true"}
        page = await get(server, tail=1000, **query)
        assert page["hasMore"]
        assert page["searchedTo"] == page["previous"] > 1
        matching = [number for number, line in enumerate(lines, 1) if re.search(pattern, line)]
        for backward in (False, True):
            assert await collect(server, backward=backward, **query) == matching


async def test_blocks_that_cannot_match_are_not_read(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await attempts.start(server)
    blocks = [[f"block {block} line {n}" for n in range(1024)] for block in range(4)]
    blocks[2][500] = "here is the needle"
    for block in blocks:
        server.clock.forward(3600)
        assert (await attempt.ship(*block, stream="stderr")).is_success
    read: list[tuple[int, int]] = []
    original = log_rows.list_lines

    def list_lines(*args: Any, above: int, up_to: int, **more: Any) -> Any:
        read.append((above, up_to))
        return original(*args, above=above, up_to=up_to, **more)

    monkeypatch.setattr(log_rows, "list_lines", list_lines)
    page = await get(server, search="the needle", tail=5)
    assert [line["number"] for line in page["items"]] == [2 * 1024 + 501]
    assert read == [(2048, 3072)]
    page = await get(server, search="^h.{3} i", regex="true", tail=5)  # nothing for a summary
    assert [line["number"] for line in page["items"]] == [2 * 1024 + 501]
    assert read.count((2048, 3072)) == len(read) == 2
    read.pop()
    assert (await get(server, level="warning"))["items"] == []
    begin = 1_700_000_000_000 + 3_600_000
    page = await get(server, after=begin + 1, to=begin + 3_600_000, limit=1, tail=1)
    assert [line["number"] for line in page["items"]] == [2048]
    assert read[1:] == [(1024, 2048)]
    # A log from before there were summaries is read.
    await server.services.store.write(
        lambda tx: tx.exec_driver_sql("DELETE FROM log_blocks").rowcount
    )
    page = await get(server, search="the needle", tail=5)
    assert [line["number"] for line in page["items"]] == [2 * 1024 + 501]


async def test_times_levels_and_attempts_filter_lines(server: TestServer) -> None:
    attempt = await attempts.start(server)
    start = server.clock.now_ms()
    for number in range(6):
        await attempt.ship(f"line {number}", stream="stdout")
        server.clock.forward(1)
    page = await get(server, after=start + 2000, to=start + 4000)
    assert [line["text"] for line in page["items"]] == ["line 2", "line 3", "line 4"]
    await attempt.event("warning", message="slow disk")
    await attempt.ship("ERROR: no such file", "DEBUG: details", stream="stderr")
    lines = (await get(server, tail=3))["items"]
    assert [line["level"] for line in lines] == ["warning", "error", "debug"]
    for level, count in (("debug", 9), ("info", 8), ("warning", 2), ("error", 1)):
        assert len((await get(server, level=level))["items"]) == count, level
    assert (await get(server, attempt=2))["items"] == []
    assert len((await get(server, attempt=1))["items"]) == 9


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("query", "part"),
    [
        ({"search": "(", "regex": "true"}, "missing )"),
        ({"search": r"(a)\1", "regex": "true"}, "backreferences"),
        ({"search": "(?=a)", "regex": "true"}, "lookaround"),
        ({"search": "x" * 1001}, "1001 characters"),
        ({"search": "x", "regex": "yes"}, "true, false"),
        ({"level": "loud"}, "debug, info, warning, error"),
        ({"tail": "0"}, "an integer from 1"),
        ({"before": "x"}, "an integer"),
    ],
)
async def test_an_invalid_filter_is_rejected_with_the_reason(
    server: TestServer, query: dict[str, str], part: str
) -> None:
    await attempts.start(server)
    problem = await get(server, **query)
    assert problem["code"] == "InvalidQuery"
    assert part in problem["detail"]
    assert repr(next(iter(query.values()))[:80])[1:-1] in problem["detail"]


def test_no_expression_takes_more_than_linear_time() -> None:
    """With backtracking this would take longer than the universe exists."""
    search = parse_search("^(a+)+(a*)*$", is_regex=True, is_case_sensitive=False)
    assert search.match(["a" * 16_000 + "!", "a" * 16_000]) == [False, True]


PATTERNS = (
    "loss", "lo+ss", "l?oss", "(loss|nan) 7", "a{2,3}bc", "[xyz]abc", "abc|xyz", r"\bloss\b",
    r"100\%", r"a\.bcd", "^start.*end$", "(?i)LOSS", "abc*def", "abc(x(y))?def", r"\d+ samples",
    r"\x61bcdef", "[]abc]xyz", "[^]]end", "a|", "under_score/x", "tr(ai|ie)n", "x+?yzw",
    "foo{,3}bar", "^.$", r"\b7$|^ ", r"\A7|\w\z", r"^[^\n]{2}$", "(?-m)^7", r"[ab]\B",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_match_contains_a_literal_and_passes_the_signature(pattern: str) -> None:
    literals = find_literals(pattern)
    search = parse_search(pattern, is_regex=True, is_case_sensitive=False)
    pieces = [*re.findall(r"\w+|\W", pattern), "loss", "abc", "aabc", "bcd", "end", "def", " ", "7"]
    texts = ["".join(chance.choices(pieces, k=chance.randrange(1, 7))) for _ in range(400)]
    matching = [text for text, found in zip(texts, search.match(texts), strict=True) if found]
    bits = [list_bits(literal) for literal in literals]
    for text in matching:
        assert not literals or any(each.lower() in text.lower() for each in literals), text
        assert not literals or may_match(build_signature([text]), bits), text
        assert not search.is_for_blocks or search.may_match(f"of\n{text}\na block"), text


def test_a_number_is_told_apart_in_a_block_of_many_numbers() -> None:
    numbers = [chance.randrange(10**7, 2 * 10**7) for _ in range(1024)]
    signature = build_signature(f"image {number}.jpg took {number % 97} ms" for number in numbers)
    assert all(may_match(signature, [list_bits(f" {number}.jpg")]) for number in numbers)
    others = [chance.randrange(2 * 10**7, 3 * 10**7) for _ in numbers]
    hits = sum(may_match(signature, [list_bits(f" {number}.jpg")]) for number in others)
    assert hits < 20


def test_a_signature_of_long_texts_misses_nothing_at_its_seams() -> None:
    text = "".join(chance.choices("abcdefgh 0123456789", k=600_000))
    signature = build_signature([text])
    for start in (0, *range(262_130, 262_150), 599_980):
        assert may_match(signature, [list_bits(text[start : start + 12])])
    for short in ("", "a", "ab", "abc", "1234", "12345"):
        assert may_match(build_signature([short]), [list_bits(short)])


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("step 3 of 9: loss 0.2", "info"),
        ("WARNING: low memory", "warning"),
        ("2026-11-30 14:02:09,123 - transformers - WARNING - slow tokenizer", "warning"),
        ("[14:02:09] [ERROR] no device", "error"),
        ("\x1b[31mERROR\x1b[0m failed", "error"),
        ("/lib/x.py:3: UserWarning: deprecated", "warning"),
        ("Traceback (most recent call last):", "error"),
        ('  File "/lib/x.py", line 3, in f', "error"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory", "error"),
        ("KeyboardInterrupt", "error"),
        ("DEBUG:urllib3:connected", "debug"),
        ("error: no such file", "error"),
        ("no errors were found", "info"),
        ("the ERRORS column", "info"),
        ("x" * 200 + " ERROR ", "info"),
    ],
)
def test_a_level_is_derived_from_the_text(text: str, level: str) -> None:
    assert LEVELS[derive_level("stderr", text)] == level


async def test_a_follower_of_a_search_is_woken_by_a_match_only(server: TestServer) -> None:
    attempt = await attempts.start(server)
    await attempt.ship("nothing", stream="stdout")
    following = asyncio.create_task(get(server, since=0, search="needle", wait=30))
    while not server.services.notifier._events:
        await asyncio.sleep(0)
    await attempt.ship("more of nothing", stream="stdout")
    await attempt.ship("the needle", stream="stdout")
    async with asyncio.timeout(5):
        page = await following
    assert [line["number"] for line in page["items"]] == [3]


async def test_the_whole_log_is_downloaded_as_text(server: TestServer) -> None:
    lines = await ship_words(server, 2300)
    client = await server.api()
    path = server.path("runs/r1/logs/file")
    plain = await client.get(path, headers={"accept-encoding": "identity"})
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    texts = plain.text.splitlines()
    assert [text.partition(" stdout ")[2] for text in texts] == lines
    assert texts[0].startswith("2023-11-14T22:13:20.000Z stdout ")
    compressed = await client.send(client.build_request("GET", path), stream=True)
    assert compressed.headers["content-encoding"] == "gzip"
    raw = b"".join([part async for part in compressed.aiter_raw()])
    assert gzip.decompress(raw) == plain.content
    assert (await client.get(server.path("runs/absent/logs/file"))).status_code == 404


async def test_blocks_leave_with_the_log(server: TestServer) -> None:
    await ship_words(server, 1100)
    list_blocks = partial(
        log_blocks.list_blocks,
        org=server.org,
        run_id="r1",
        first=0,
        last=9,
        with_signatures=False,
    )
    blocks = server.services.store.read(list_blocks)
    assert [json.loads(json.dumps(list(block)))[0] for block in blocks] == [0]
    await server.services.store.write(partial(log_rows.remove_log, org=server.org, run_id="r1"))
    assert server.services.store.read(list_blocks) == []
