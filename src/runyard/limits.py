"""All limits of requests and responses.

The HTTP layer checks them before the store is used, so SQLite and PostgreSQL accept and reject the
same requests. Texts that become part of an index are limited in bytes of UTF-8, not in characters:
a PostgreSQL index entry holds at most ``INDEX_ENTRY`` bytes, and no combination of accepted values
is longer (``tests/store/test_limits.py`` inserts the longest ones). ``docs/security.md`` lists the
limits; a test compares the two.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, UnsetType

Unit = Literal["bytes", "characters", "items", "levels"]
KIB, MIB = 1024, 1024 * 1024
REPLACEMENT = "\ufffd"
MAX_INTEGER = 2**53  # every JSON parser keeps integers up to here exact
MAX_COLUMN = 2**31 - 1  # an Integer column of PostgreSQL


@dataclass(frozen=True)
class Limit:
    """One limit: its value, its unit, and what it applies to."""

    value: int
    unit: Unit
    applies_to: str

    def size(self, text: str) -> int:
        """Return the length of a text in the limit's unit."""
        if self.unit == "bytes" and not text.isascii():
            return len(text.encode(errors="surrogatepass"))
        return len(text)

    def find_problem(self, text: str) -> str | None:
        """Return what is wrong with a text; None when it can be stored."""
        if "\0" in text:
            return "holds the character NUL (U+0000), which no store keeps; try: remove it"
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            return "holds a lone surrogate, half of a character; try: send valid Unicode"
        # No character has more than four bytes, so most texts are short enough without being
        # encoded.
        if len(text) * 4 > self.value and (size := self.size(text)) > self.value:
            unit = "bytes in UTF-8" if self.unit == "bytes" else self.unit
            return f"has {size:,} {unit}; at most {self.value:,} are allowed; try: shorten it"
        return None


# Limits of requests.
URL = Limit(8 * KIB, "bytes", "URL of a request, query included")
HEADERS = Limit(16 * KIB, "bytes", "headers of a request, together")
BODY = Limit(MIB, "bytes", "body of a request")
LIST_BODY = Limit(
    16 * MIB, "bytes", "body that lists files, and a message of a controller or supervisor"
)
BODY_LEVELS = Limit(32, "levels", "nesting of a JSON body")
BODY_ITEMS = Limit(10_000, "items", "entries of a JSON body, at all levels together")
LIST_BODY_ITEMS = Limit(200_000, "items", "the same, in a body that lists files")
BODY_TEXT = Limit(64 * KIB, "characters", "any text or field name in a JSON body")
ID = Limit(255, "bytes", "id in a path or a body")
NAME = Limit(255, "characters", "name of a dataset or a training project")
TEXT = Limit(16 * KIB, "bytes", "description, source and other free text")
WORD = Limit(64, "bytes", "name of a format, kind or type")
ATTRIBUTES = Limit(100, "items", "attributes of one resource")
ATTRIBUTE_KEY = Limit(255, "bytes", "key of an attribute")
ATTRIBUTE_VALUE = Limit(2 * KIB, "bytes", "value of an attribute")
ATTRIBUTES_TOTAL = Limit(
    32 * KIB, "bytes", "keys and values of the attributes of one resource, together"
)
FILE_NAME = Limit(KIB, "bytes", "name of an image or a file, folders included")
MEDIA_TYPE = Limit(255, "characters", "media type of an announced file")
FILES = Limit(5_000, "items", "images announced in one request, and names in one bulk deletion")
ANNOTATION_FILES = Limit(50_000, "items", "annotation files announced in one request")
CUSTOM_METADATA = Limit(16 * KIB, "bytes", "custom metadata of an image, as JSON")
FLOW_STYLE = Limit(16 * KIB, "bytes", "`style` of one block of a flow, as JSON")
FLOW = Limit(256 * KIB, "bytes", "a flow as a whole, as JSON")
QUERY_TEXT = Limit(4 * KIB, "bytes", "a query parameter, page tokens included")
ATTRIBUTE_FILTERS = Limit(16, "items", "`attribute` filters of one list request")
FILTER_TERMS = Limit(32, "items", "terms of the filter of one list request")
RUN_NAME = Limit(255, "bytes", "name of a run")

# Limits of messages of controllers and supervisors. Longer free texts are cut, so that they never
# make a report fail.
HOST = Limit(255, "bytes", "host name of a machine; name and model of an accelerator")
BOOT_ID = Limit(64, "bytes", "boot id of a machine")
LABELS = Limit(1_000, "items", "labels and accelerators of a machine")
RUN_FOLDERS = Limit(
    1_000, "items", "run folders in one report of a machine, which may send several"
)
MESSAGE = Limit(
    4 * KIB, "bytes", "cause of an exit, note, message of a condition; longer ones are cut"
)
LOG_LINE = Limit(16 * KIB, "bytes", "line of a log; longer ones are cut")
METRICS = Limit(
    256, "items", "values of one metric point and of one checkpoint; further ones are left out"
)
METRIC_NAME = Limit(255, "bytes", "name of a metric; longer ones are cut")
METRIC_KEYS = Limit(1_000, "items", "metrics of one run; values of further ones are left out")
PLAN = Limit(64 * KIB, "bytes", "plan of a run, as JSON; a larger one is left out")
FINDING = Limit(8 * KIB, "bytes", "finding of a run, as JSON; a larger one is only logged")
SAMPLES = Limit(
    64 * MIB, "bytes", "sample predictions of one run; those of further evaluations are left out"
)
CHECKPOINT_FILES = Limit(10_000, "items", "files of one checkpoint")

# Limits of imports. Longer record ids are shortened and stay unique; longer categories are cut.
RECORD_ID = Limit(512, "bytes", "id of a record of a dataset")
CATEGORY = Limit(2 * KIB, "bytes", "category of a record of a dataset")

# Limits of responses.
PAGE_ITEMS = Limit(1_000, "items", "items of one page of a list; metric points: 10,000")
PAGE = Limit(
    4 * MIB,
    "bytes",
    "one page of a list; a page that would be longer ends early, `nextPage` says where",
)
WHOLE_LIST = Limit(64 * MIB, "bytes", "a list for a client that cannot fetch a second page")
REPORT_ITEMS = Limit(
    1_000, "items", "entries of each list in a storage report; `omitted` counts the others"
)

INDEX_ENTRY = 2_704  # bytes; a third of a PostgreSQL page, less its headers


def list_limits() -> dict[str, Limit]:
    """Return every limit by its name."""
    return {name: value for name, value in globals().items() if isinstance(value, Limit)}


def within(limit: Limit, *, at_least: int = 0) -> Any:
    """Return the annotation of a field with a limit.

    OpenAPI counts characters; ``check_fields`` checks bytes.
    """
    if limit.unit == "items":
        return Meta(max_length=limit.value)
    description = (
        f"At most {limit.value:,} {limit.unit}{' in UTF-8' if limit.unit == 'bytes' else ''}; no "
        "NUL."
    )
    return Meta(
        min_length=at_least or None,
        max_length=limit.value,
        description=description,
        extra={"limit": limit},
    )


def check_fields(struct: msgspec.Struct) -> None:
    """Raise ValueError unless every text field of a struct is within its annotated limit."""
    for name, wire_name, limit in _limited_fields(type(struct)):
        value = getattr(struct, name)
        if isinstance(value, str) and (problem := limit.find_problem(value)):
            raise ValueError(f"`{wire_name}` {problem}")


@functools.cache
def _limited_fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, str, Limit], ...]:
    """Return the text fields that have a limit: name, name on the wire, limit."""
    names = dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
    return tuple(
        (name, names[name], limit)
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if name in names and (limit := _find_limit(hint)) is not None
    )


def _find_limit(hint: Any) -> Limit | None:
    """Return the limit in an annotation such as ``Text | None``.

    Limits inside containers do not count.
    """
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.extra and "limit" in meta.extra:
            limit: Limit = meta.extra["limit"]
            return limit
    parts = get_args(hint)
    if type(None) in parts or UnsetType in parts:
        return next((found for part in parts if (found := _find_limit(part)) is not None), None)
    return None


def clean_text(text: str, limit: Limit = MESSAGE) -> str:
    """Return a text that can be stored: NUL and lone surrogates replaced, cut at the limit."""
    text = text.replace("\0", REPLACEMENT)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        encoded = text.encode()
    return text if len(encoded) <= limit.value else encoded[: limit.value].decode(errors="ignore")


def clean_json(value: Any) -> Any:
    """Return JSON without NUL and lone surrogates in texts and field names."""
    if isinstance(value, str):
        return clean_text(value, LIST_BODY)
    if isinstance(value, dict):
        return {clean_text(str(name), LIST_BODY): clean_json(item) for name, item in value.items()}
    return [clean_json(item) for item in value] if isinstance(value, list) else value
