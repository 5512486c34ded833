"""A pack returns what was put into it; bytes that are no pack are rejected with the reason."""

import io
import struct

import pytest

from runyard.datasets.packs import MAGIC, PackInvalid, build_pack, is_safe, plan_packs, read_index

FILES = [("a.png", b"123"), ("b/ä ö.jpg", b""), ("c.jsonl", b"{}\n")]


def test_a_pack_round_trips_its_files() -> None:
    data = build_pack(FILES)
    entries = read_index(io.BytesIO(data), len(data))
    assert [(path, data[offset : offset + size]) for path, offset, size in entries] == FILES


def test_the_pack_layout_is_fixed() -> None:
    index = b'[["a",2]]'
    assert (
        build_pack([("a", b"hi")]) == b"RYPACK1\n" + struct.pack("<Q", len(index)) + index + b"hi"
    )


def make_pack(index: bytes, content: bytes = b"") -> bytes:
    return MAGIC + struct.pack("<Q", len(index)) + index + content


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "does not begin"),
        (b"RYPACK2\n" + bytes(8), "does not begin"),
        (MAGIC + struct.pack("<Q", 1 << 60), "longer than allowed"),
        (make_pack(b"[["), "cannot be read"),
        (make_pack(b'[["a",1]]'), "end at byte"),
        (make_pack(b'[["a",1]]', b"12"), "end at byte"),
        (make_pack(b'[["a",-1],["b",3]]', b"12"), "size of 'a' is -1"),
        (make_pack(b'[["a"]]'), "cannot be read"),
        (make_pack(b"[" * 5000), "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_pack_is_rejected(data: bytes, why: str) -> None:
    with pytest.raises(PackInvalid, match=why):
        read_index(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\nb", "a\0", "x" * 1025]
)
def test_only_plain_relative_paths_are_safe_names(path: str) -> None:
    assert not is_safe(path)
    with pytest.raises(ValueError, match="not a plain relative path"):
        build_pack([(path, b"")])


def test_files_are_grouped_in_order_up_to_the_limit() -> None:
    groups = list(plan_packs([("a", 4), ("b", 6), ("c", 1), ("d", 99), ("e", 1)], limit_bytes=10))
    assert groups == [["a", "b"], ["c"], ["d"], ["e"]]
