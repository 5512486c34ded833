import bz2
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from runyard.datasets.archives import (
    ArchiveLimits,
    ArchiveRejected,
    normalize_member_name,
    read_members,
)

VI = (
    '{"id":"1","asset":{"filename":"a.png","width":40,"height":20},'
    '"contents":{"type":"Freeform","text":"red","prompt":""}}\n'
)


def make_zip(
    *files: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def make_tar(
    *files: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def make_special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def mode(name: str, bits: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, bits << 16
    return info


def read_all(data: bytes, path: str, limits: ArchiveLimits = ArchiveLimits()) -> dict[str, bytes]:
    return {member.name: member.read() for member in read_members(io.BytesIO(data), path, limits)}


def replace_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def fix_checksum(header: bytes) -> bytes:
    """Return a tar header with a corrected checksum."""
    header = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


FILES = [("labels/a.txt", b"red\n"), ("b.txt", b"blue " * 300_000), ("empty", b"")]


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("x.zip", make_zip(*FILES)),
        ("x.zip", make_zip(*FILES, method=zipfile.ZIP_STORED)),
        ("x.tar", make_tar(*FILES)),
        ("x.tar", make_tar(*FILES, format=tarfile.GNU_FORMAT)),
        ("x.tar", make_tar(*FILES, format=tarfile.USTAR_FORMAT)),
        ("x.tar.gz", gzip.compress(make_tar(*FILES), 1)),
        ("X.TGZ", gzip.compress(make_tar(*FILES)[:700]) + gzip.compress(make_tar(*FILES)[700:])),
        ("x.tar.bz2", bz2.compress(make_tar(*FILES))),
    ],
)
def test_regular_files_are_extracted_unchanged(path: str, data: bytes) -> None:
    assert read_all(data, path) == dict(FILES)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_of_tar(format: int) -> None:
    name = "/".join(["ördner" * 8] * 10) + "/ä.txt"
    assert read_all(make_tar((name, b"x"), format=format), "x.tar") == {name: b"x"}


def test_names_that_ustar_cuts_in_two() -> None:
    name = "/".join(["folder" * 5] * 4) + "/a.txt"
    assert len(name) > 100
    assert read_all(make_tar((name, b"x"), format=tarfile.USTAR_FORMAT), "x.tar") == {name: b"x"}


def test_a_zip_with_64_bit_sizes_and_streamed_entries() -> None:
    class Pipe(io.RawIOBase):  # cannot seek, so sizes follow the data
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with (
        zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.txt", "w", force_zip64=True) as f,
    ):
        f.write(b"red" * 1000)
    assert read_all(pipe.data, "x.zip") == {"a.txt": b"red" * 1000}


UNSAFE_NAMES = [
    "/etc/passwd",
    "../a.txt",
    "a/../../b",
    "a/..",
    "C:/a.txt",
    "x" * 300,
    "a/" * 600 + "b",
    "a\nb",
    "\u202ea",
]


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_names_that_are_not_plain_reject_the_archive(name: str) -> None:
    for data, path in (
        (make_zip(("ok.txt", b""), (name, b"x")), "x.zip"),
        (make_tar(("ok.txt", b""), (name, b"x")), "x.tar"),
    ):
        with pytest.raises(ArchiveRejected, match="plain relative") as rejected:
            read_all(data, path)
        assert (rejected.value.code, rejected.value.member) == ("ArchiveUnsafe", name)


def test_backslashes_and_nul_in_names() -> None:
    data = make_zip(("labels_a.txt", b"red"), ("b", b"")).replace(b"labels_a.txt", b"labels\\a.txt")
    assert read_all(data, "x.zip")["labels/a.txt"] == b"red"
    for bad in (b"..\\..\\..a.txt", b"labels\0a.txt"):
        with pytest.raises(ArchiveRejected, match="plain relative"):
            read_all(make_zip(("labels_a.txt", b"red")).replace(b"labels_a.txt", bad[:12]), "x.zip")
    with pytest.raises(ArchiveRejected, match="plain relative"):
        read_all(make_tar(("a\\b", b"")), "x.tar")


def test_names_that_are_not_text_are_rejected() -> None:
    with pytest.raises(ArchiveRejected, match="not UTF-8"):
        read_all(make_zip(("ä", b"")).replace("ä".encode(), b"\xff\xff"), "x.zip")
    block = fix_checksum(b"\xff" + make_tar(("a", b""))[1:512])
    with pytest.raises(ArchiveRejected, match="plain relative"):
        read_all(block, "x.tar")


@pytest.mark.parametrize(
    ("member", "what"),
    [
        (make_special("l", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (make_special("l", tarfile.LNKTYPE, "ok.txt"), "hard link"),
        (make_special("d", tarfile.CHRTYPE), "device"),
        (make_special("d", tarfile.BLKTYPE), "device"),
        (make_special("p", tarfile.FIFOTYPE), "pipe"),
        (make_special("s", tarfile.GNUTYPE_SPARSE), "sparse"),
        (make_special("u", b"Z"), "unknown type"),
    ],
)
def test_a_tar_with_anything_but_files_and_folders_is_rejected(
    member: tarfile.TarInfo, what: str
) -> None:
    with pytest.raises(ArchiveRejected, match=what) as rejected:
        read_all(make_tar(("ok.txt", b"x"), (member, b"")), "x.tar")
    assert rejected.value.code == "ArchiveUnsafe"


@pytest.mark.parametrize("bits", [0o120777, 0o020666, 0o060666, 0o010666, 0o140777, 0o040755])
def test_a_zip_with_anything_but_files_and_folders_is_rejected(bits: int) -> None:
    with pytest.raises(ArchiveRejected, match="neither a file nor a folder"):
        read_all(make_zip(("ok.txt", b"x"), (mode("odd", bits), b"/etc/passwd")), "x.zip")


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("a//b", "a/b")]
)
def test_a_duplicate_name_is_rejected(names: tuple[str, str]) -> None:
    with pytest.raises(ArchiveRejected, match=r"twice|a file and a folder"):
        read_all(make_tar(*((name, b"x") for name in names)), "x.tar")
    with pytest.warns() if names == ("a", "a") else nullcontext():
        data = make_zip(*((name, b"x") for name in names))
    with pytest.raises(ArchiveRejected, match=r"twice|a file and a folder"):
        read_all(data, "x.zip")


def test_bombs_are_rejected_by_ratio_before_they_unpack() -> None:
    zeros = b"\0" * (32 << 20)
    for data, path in (
        (make_zip(("a", zeros)), "x.zip"),
        (gzip.compress(make_tar(("a", zeros))), "x.tar.gz"),
        (bz2.compress(make_tar(("a", zeros))), "x.tar.bz2"),
    ):
        with pytest.raises(ArchiveRejected, match="bytes") as rejected:
            next(read_members(io.BytesIO(data), path))
        assert rejected.value.code == "ArchiveTooLarge"


def test_a_terabyte_that_is_only_declared_is_rejected() -> None:
    huge = tarfile.TarInfo("huge")
    huge.size = 1 << 40
    data = huge.tobuf() + bytes(1024)
    for bytes_, path in ((data, "x.tar"), (gzip.compress(data), "x.tar.gz")):
        with pytest.raises(ArchiveRejected):
            next(read_members(io.BytesIO(bytes_), path))
    small = make_zip(("a", b"x" * 100), method=zipfile.ZIP_STORED)
    central = small.rfind(b"PK\1\2")
    extra = struct.pack("<2H2Q", 1, 16, 1 << 40, 1 << 40)
    wide = replace_bytes(small, central + 20, b"\xff" * 8 + struct.pack("<2H", 1, len(extra)))
    wide = wide[: central + 47] + extra + wide[central + 47 :]
    wide = replace_bytes(wide, len(wide) - 10, struct.pack("<L", 47 + len(extra)))
    with pytest.raises(ArchiveRejected, match="declare more") as rejected:
        next(read_members(io.BytesIO(wide), "x.zip"))
    assert rejected.value.code == "ArchiveTooLarge"


def test_an_entry_that_is_longer_or_shorter_than_declared() -> None:
    data = make_zip(("a", b"x" * 5000))
    central = data.rfind(b"PK\1\2")
    for size in (10, 9999):
        altered = replace_bytes(data, central + 24, struct.pack("<L", size))
        found = read_members(io.BytesIO(altered), "x.zip")
        with pytest.raises(ArchiveRejected, match="declared length"):
            next(found).read()
    with pytest.raises(ArchiveRejected, match="checksum"):
        read_all(replace_bytes(data, central + 16, b"\0\0\0\0"), "x.zip")


def test_entries_that_overlap_are_rejected() -> None:
    """Thousands of entries share the data of one: no single entry has a suspicious ratio."""
    data = make_zip(("a", b"x" * 5000), ("b", b"y" * 5000))
    second = data.rfind(b"PK\1\2")
    with pytest.raises(ArchiveRejected, match="overlap"):
        read_all(replace_bytes(data, second + 42, struct.pack("<L", 0)), "x.zip")
    with pytest.raises(ArchiveRejected, match="overlap"):
        read_all(replace_bytes(data, second + 42, struct.pack("<L", 20)), "x.zip")


def test_directory_and_entry_must_agree() -> None:
    data = make_zip(("safe.txt", b"x"))
    with pytest.raises(ArchiveRejected, match="contradict"):
        read_all(data.replace(b"safe.txt", b"evil.txt", 1), "x.zip")
    with pytest.raises(ArchiveRejected, match="encrypted"):
        read_all(replace_bytes(data, data.rfind(b"PK\1\2") + 8, b"\1"), "x.zip")
    with pytest.raises(ArchiveRejected, match="method"):
        read_all(make_zip(("a", b"x"), method=zipfile.ZIP_LZMA), "x.zip")
    with pytest.raises(ArchiveRejected, match=r"declared offset|follows"):
        read_all(b"#!/bin/sh\n" + data, "x.zip")
    with pytest.raises(ArchiveRejected, match="follows"):
        read_all(data + b"more", "x.zip")


def test_more_entries_than_allowed() -> None:
    many = [(f"{n}", b"") for n in range(6)]
    for data, path in ((make_zip(*many), "x.zip"), (make_tar(*many), "x.tar")):
        assert len(read_all(data, path, ArchiveLimits(entries=6))) == 6
        with pytest.raises(ArchiveRejected, match="entries") as rejected:
            read_all(data, path, ArchiveLimits(entries=5))
        assert rejected.value.code == "ArchiveTooLarge"


def test_a_negative_size_in_a_tar_does_not_loop_forever() -> None:
    """CVE-2025-8194: the offset decreased, and the same headers were read forever."""
    block = make_tar(("a", b"x"))[:512]
    for size in (-1, -512, -(1 << 60)):
        field = b"\xff" * 3 + struct.pack(">q", size) + b"\xff"
        number = b"\xff" + size.to_bytes(11, "big", signed=True)
        assert len(field) == len(number)
        with pytest.raises(ArchiveRejected, match="negative"):
            read_all(fix_checksum(replace_bytes(block, 124, number)) + b"x" * 512, "x.tar")
    pax = make_tar((make_special("h", tarfile.XHDTYPE), b"13 size=-512\n"))
    with pytest.raises(ArchiveRejected, match="invalid size"):
        read_all(pax[:1024] + make_tar(("a", b"x")), "x.tar")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"99999999999 path=a\n", "damaged"),
        (b"0 path=a\n", "damaged"),
        (b"-5 path=a\n", "damaged"),
        (b"9 path=a\n\xff", "damaged"),
        (b"22 GNU.sparse.major=1\n", "sparse"),
        (b"14 path=/etc/x\n", "damaged|plain"),
    ],
)
def test_extended_headers_that_are_damaged_or_false(body: bytes, why: str) -> None:
    data = make_tar((make_special("h", tarfile.XHDTYPE), body))[:1024] + make_tar(("a", b"x"))
    with pytest.raises(ArchiveRejected, match=why):
        read_all(data, "x.tar")


def test_a_header_of_a_gigabyte_is_not_read() -> None:
    block = bytearray(make_tar((make_special("h", tarfile.GNUTYPE_LONGNAME), b"x"))[:512])
    block[124:136] = b"10000000000\0"
    with pytest.raises(ArchiveRejected, match="a header of"):
        read_all(fix_checksum(bytes(block)) + b"x" * 4096, "x.tar")


@pytest.mark.parametrize("path", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2"])
def test_a_truncated_archive_is_rejected_or_yields_complete_files(path: str) -> None:
    files = [("a.txt", b"red" * 40), ("b.txt", zlib.compress(b"blue" * 99))]
    tar = make_tar(*files)
    data = {
        "zip": make_zip(*files),
        "tar": tar,
        ".gz": gzip.compress(tar),
        "bz2": bz2.compress(tar),
    }[path[-3:]]
    rejected = 0
    for length in range(0, len(data), max(1, len(data) // 150)):
        try:
            assert read_all(data[:length], path).items() <= dict(files).items()
        except ArchiveRejected:
            rejected += 1
    assert rejected > 0


def test_an_archive_is_detected_by_its_contents(
    source_folder: Any, make_png: Callable[..., bytes], tmp_path: Path
) -> None:
    inner = [
        ("images/a.png", make_png()),
        ("labels.jsonl", VI.encode()),
        ("__MACOSX/._a.png", b"litter"),
    ]
    source_folder.put("data.zip", make_zip(*inner)).put("readme.md", "about")
    result = source_folder.check("freeform")
    [record] = result.records
    assert record.asset.filename == "data.zip/images/a.png"
    assert [(found.code, found.file) for found in result.findings] == [
        ("FileIgnored", "data.zip"),
        ("FileIgnored", "readme.md"),
    ]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "data.zip",
        "readme.md",
    ]


def test_nothing_of_an_unsafe_archive_is_accepted(
    source_folder: Any, make_png: Callable[..., bytes], tmp_path: Path
) -> None:
    source_folder.put(
        "bad.zip",
        make_zip(
            ("a.png", make_png()), ("labels.jsonl", VI.encode()), ("../../evil.png", make_png())
        ),
    )
    source_folder.put("inner.tar", make_tar(("more.zip", make_zip(("a.png", make_png())))))
    result = source_folder.check("freeform")
    assert result.records == []
    assert [(found.code, found.file, found.action) for found in result.findings] == [
        ("ArchiveUnsafe", "bad.zip", "FileRejected"),
        ("ArchiveUnsafe", "inner.tar/more.zip", "FileRejected"),
    ]
    assert result.findings[0].value == "../../evil.png"
    assert not list(tmp_path.rglob("evil*"))


def test_plain_names() -> None:
    assert normalize_member_name("./a//b/./c.txt") == "a/b/c.txt"
    assert [normalize_member_name(name) for name in ("", ".", "/", "..", "a/\ud800", "c:\\a")] == [
        None
    ] * 6


def make_foreign_zip(encoding: str, *files: tuple[str, bytes], extra: bytes = b"") -> bytes:
    """Return a zip as Windows writes it: names in the encoding of the system, without a flag."""
    numbered = []
    for number, (name, data) in enumerate(files):
        raw = name.encode(encoding)
        info = zipfile.ZipInfo(f"{number:0{len(raw)}d}"[: len(raw)])
        info.extra = extra
        numbered.append((info, data, raw))
    packed = make_zip(*((info, data) for info, data, _ in numbered))
    for info, _, raw in numbered:
        packed = packed.replace(info.filename.encode(), raw)
    return packed


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gbk", "罐头"),
        ("shift_jis", "缶詰の写真"),
        ("euc_kr", "통조림"),
        ("cp1251", "банка"),
        ("cp437", "Büchse"),
    ],
)
def test_a_row_finds_an_image_by_its_name_in_any_encoding(
    source_folder: Any, make_png: Callable[..., bytes], encoding: str, name: str
) -> None:
    packed = make_foreign_zip(
        encoding, (f"{name}-1.png", make_png(30)), (f"{name}-2.png", make_png(31))
    )
    source_folder.put("images.zip", packed)
    rows = "".join(f"{name}-{number}.png,{number}\n" for number in (1, 2))
    result = source_folder.put("t.csv", f"file_name,text\n{rows}").check("freeform")
    assert [(r.asset.width, r.contents.text) for r in result.records] == [(30, "1"), (31, "2")]
    [found] = [found for found in result.findings if found.code == "NameEncodingUnknown"]
    assert "2 names are not UTF-8" in found.cause
    assert result.outcome.counts["errors"] == 0


@pytest.mark.parametrize("name", ["罐.txt", "Büchse.txt", "ordner/ä.txt"])
def test_the_unicode_name_of_an_extra_field_is_used(name: str) -> None:
    raw = name.encode("gbk", "replace")
    body = b"\1" + struct.pack("<L", zlib.crc32(raw)) + name.encode()
    extra = struct.pack("<2H", 0x7075, len(body)) + body
    packed = make_foreign_zip("gbk", (raw.decode("gbk"), b"x"), extra=extra)
    assert read_all(packed, "x.zip") == {name: b"x"}
    other = packed.replace(body, b"\1" + bytes(4) + body[5:])  # the field of another name
    assert read_all(other, "x.zip") != {name: b"x"}


@pytest.mark.parametrize("inner", ["images.zip", "labels.tar.gz", "a/b.tgz"])
def test_an_archive_within_an_archive_is_an_error(
    source_folder: Any, make_png: Callable[..., bytes], inner: str
) -> None:
    source_folder.put("x.zip", make_zip((inner, b"PK"), ("a.png", make_png())))
    result = source_folder.check("freeform")
    [found] = [found for found in result.findings if found.severity == "error"]
    assert (found.code, found.file) == ("ArchiveUnsafe", f"x.zip/{inner}")
    assert "not opened" in found.cause


@pytest.mark.parametrize(
    ("images", "table"),
    [
        ("images\\a.png", "metadata.csv"),
        ("data\\images\\a.png", "data\\metadata.csv"),
        ("a.png", "labels\\train.csv"),
    ],
)
def test_backslashes_in_names_separate_folders(
    source_folder: Any, make_png: Callable[..., bytes], images: str, table: str
) -> None:
    rows = f"file_name,text\n{images.rpartition(chr(92))[2]},red\n".encode()
    files = ((images, make_png()), (table, rows))
    infos = [(zipfile.ZipInfo(), data) for _, data in files]
    for (info, _), (name, _) in zip(infos, files, strict=True):
        info.filename = name
    result = source_folder.put("x.zip", make_zip(*infos)).check("freeform")
    assert [r.asset.filename for r in result.records] == [f"x.zip/{images}".replace(chr(92), "/")]
