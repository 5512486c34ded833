"""XML files, decoded and parsed as a stream.

expat knows four encodings, and tools write many more. A file is therefore decoded here, by its
byte-order mark or its declaration, and expat receives UTF-8. A document type, and so every custom
entity, is rejected: it could reach outside the file or expand without bound.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Protocol
from xml.parsers import expat

from runyard.datasets.findings import ReportFinding, make_finding
from runyard.datasets.sources import Source

MAX_DEPTH = 32
HEAD_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20  # expat scans an incomplete tag again for each chunk
MAX_TOKEN_BYTES = 8 << 20  # of a tag with its attributes, or a comment

_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([^"'>]{1,64})["']""")
_BEGINNING = re.compile(r"\s*(?:<\?xml\s[^>]*\?>)?")
_ROOT = re.compile(r"<([A-Za-z_][\w:.-]*)")
_NO_ELEMENT = re.compile(r"<!--.*?-->|<\?.*?\?>", re.S)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
# Declared names, in lower case with hyphens, and the codec that decodes all that tools mean by
# them: "gb2312" on Windows is its superset, as in web browsers.
_CODECS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    # Bytes that are not UTF-16 although they are declared so: saved again by an editor.
    **dict.fromkeys(("utf-16", "utf16", "utf-16le", "utf-16be", "unicode"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin-1", "latin1"), "iso-8859-1"),
    **{f"iso-8859-{part}": f"iso-8859-{part}" for part in (*range(2, 12), 13, 14, 15, 16)},
    **{f"windows-{page}": f"cp{page}" for page in range(1250, 1259)},
    **{f"cp{page}": f"cp{page}" for page in (*range(1250, 1259), 437, 850, 852, 866)},
    **dict.fromkeys(("gbk", "gb2312", "gb18030", "cp936", "windows-936"), "gb18030"),
    **dict.fromkeys(("big5", "cp950", "big5-hkscs"), "big5hkscs"),
    **dict.fromkeys(("shift-jis", "sjis", "cp932", "windows-31j", "ms932"), "cp932"),
    "euc-jp": "euc-jp",
    "iso-2022-jp": "iso-2022-jp",
    **dict.fromkeys(("euc-kr", "cp949", "ks-c-5601-1987", "uhc"), "cp949"),
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "tis-620": "cp874",
}


class XmlRejected(Exception):
    """The file is not valid XML, or uses a feature that is not allowed.

    ``code`` is that of the finding.
    """

    def __init__(
        self, message: str, *, line: int | None = None, code: str = "FileUnreadable"
    ) -> None:
        super().__init__(message)
        self.line, self.code = line, code


class XmlHandler(Protocol):
    """The consumer of a document's elements and text."""

    def start_element(self, name: str, attributes: Mapping[str, str], line: int) -> None: ...

    def end_element(self, name: str) -> None: ...

    def add_text(self, text: str) -> None: ...


def read_xml_root(source: Source, path: str) -> str | None:
    """Return the name of an XML file's root element; None for another file.

    Read at most 64 KiB.
    """
    if not path.lower().endswith(".xml"):
        return None
    with source.open(path) as file:
        head = file.read(HEAD_BYTES)
    try:
        codec = _find_codec(head)
    except XmlRejected:
        codec = "iso-8859-1"
    text = _NO_ELEMENT.sub("", head.decode(codec, errors="replace"))
    found = _ROOT.search(text)
    return found[1] if found else None


def parse_stream(file: BinaryIO, handler: XmlHandler) -> Iterator[None]:
    """Parse a document, and pass its elements to the handler; yield after each chunk.

    Raises XmlRejected.
    """
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    depth = pending_bytes = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, pending_bytes
        depth, pending_bytes = depth + 1, 0
        if depth > MAX_DEPTH:
            line = parser.CurrentLineNumber
            raise XmlRejected(f"it is nested deeper than {MAX_DEPTH} elements", line=line)
        handler.start_element(name, attributes, parser.CurrentLineNumber)

    def end(name: str) -> None:
        nonlocal depth, pending_bytes
        depth, pending_bytes = depth - 1, 0
        handler.end_element(name)

    def text(data: str) -> None:
        nonlocal pending_bytes
        pending_bytes = 0
        handler.add_text(data)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = _reject_document_type
    try:
        for data in _iter_utf8(file):
            parser.Parse(data, False)
            pending_bytes += len(data)
            if pending_bytes > MAX_TOKEN_BYTES:
                line = parser.CurrentLineNumber
                raise XmlRejected(f"a tag is longer than {MAX_TOKEN_BYTES:,} bytes", line=line)
            yield
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise XmlRejected(
            f"not valid XML: {expat.ErrorString(error.code)}", line=error.lineno
        ) from error
    except UnicodeDecodeError as error:
        raise XmlRejected(
            f"at or soon after this line it is not in its encoding {error.encoding}: "
            f"{error.reason}",
            line=parser.CurrentLineNumber,
            code="EncodingWrong",
        ) from error
    yield


def report_xml(error: XmlRejected, path: str, report: ReportFinding) -> None:
    """Report a file that could not be parsed, or not to its end."""
    report(
        make_finding(
            error.code, file=path, line=error.line, cause=str(error), action="FileRejected"
        )
    )


def _reject_document_type(*_: object) -> None:
    raise XmlRejected("document type declarations are not allowed")


def _iter_utf8(file: BinaryIO) -> Iterator[bytes]:
    """Yield the document as UTF-8, with only the line ends of its declaration.

    Some tools write blank lines before the declaration, which XML does not allow.
    """
    data = file.read(CHUNK_BYTES)
    decoder = codecs.getincrementaldecoder(_find_codec(data))()
    text = decoder.decode(data)
    if found := _BEGINNING.match(text):
        text = "\n" * found[0].count("\n") + text[found.end() :]
    while data:
        yield text.encode()
        data = file.read(CHUNK_BYTES)
        text = decoder.decode(data)
    yield decoder.decode(b"", final=True).encode()


def _find_codec(head: bytes) -> str:
    """Return the codec of a file by its byte-order mark or its declaration, by default UTF-8.

    Raises XmlRejected for an encoding that is not supported.
    """
    for mark, codec in _BOMS:
        if head.startswith(mark):
            return codec
    declared = _DECLARATION.match(head)
    if declared is None:
        return "utf-8"
    name = declared[1].decode(errors="replace")
    codec = _CODECS.get(name.strip().lower().replace("_", "-"), "")
    if not codec:
        raise XmlRejected(f"the encoding {name!r} is not supported", code="EncodingWrong")
    return codec
