"""Walks a value beside a struct of ``blocks`` and notes every mistake, where msgspec's own decoding stops at the first.

A check is built once per struct from msgspec's description of it, so the structs stay the only definition. Each check
returns the value cleaned: nulls that mean "not given" are dropped (a null where the default is ``auto``, or depends on
other fields), and so is whatever is faulty, so that what is left always decodes with msgspec and the checks across
fields can go on. A property test holds the two together.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import inspect

from runyard.flows.blocks import BLOCKS
from runyard.flows.problems import Findings, step

LONGEST_LIST = 1000

# Stands for a value that was found faulty, until the object around it drops it.
FAULTY: Any = object()
NOTHING: Mapping[str, Any] = {}


class Check(Protocol):
    """Compares one value with what is allowed."""

    @property
    def allowed(self) -> str:
        """What may stand there, in words that follow "it must be"."""
        ...

    def fits(self, value: Any) -> bool:
        """Whether this is the check for such a value: for a leaf, that it is right; else that it has its JSON type."""
        ...

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        """Note what is wrong with the value; return it cleaned, or FAULTY."""
        ...


@dataclass(frozen=True)
class Leaf:
    """A value with nothing inside."""

    allowed: str
    is_right: Callable[[Any], bool]
    words: tuple[str, ...] = ()

    def fits(self, value: Any) -> bool:
        return self.is_right(value)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if self.is_right(value):
            return value
        hint = None if findings.is_full else did_you_mean(value, self.words)
        findings.add(path, value, self.allowed, hint=hint)
        return FAULTY


@dataclass(frozen=True)
class Choice:
    """One of several kinds of value."""

    allowed: str
    options: tuple[Check, ...]

    def fits(self, value: Any) -> bool:
        return any(option.fits(value) for option in self.options)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        for option in self.options:
            if option.fits(value):
                return option.walk(value, path, findings)
        words = [word for option in self.options if isinstance(option, Leaf) for word in option.words]
        hint = None if findings.is_full else did_you_mean(value, words)
        findings.add(path, value, self.allowed, hint=hint)
        return FAULTY


@dataclass(frozen=True)
class Items:
    """A list of alike items."""

    allowed: str
    item: Check
    shortest: int
    longest: int
    keeps_faulty: bool

    def fits(self, value: Any) -> bool:
        return isinstance(value, list | tuple)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if not self.fits(value) or not self.shortest <= len(value) <= self.longest:
            findings.add(path, value, self.allowed)
            return FAULTY
        cleaned = [self.item.walk(item, f"{path}/{index}", findings) for index, item in enumerate(value)]
        return FAULTY if FAULTY in cleaned and not self.keeps_faulty else cleaned


@dataclass(frozen=True)
class Entries:
    """An object with free names and alike values."""

    allowed: str
    item: Check

    def fits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if not self.fits(value):
            findings.add(path, value, self.allowed)
            return FAULTY
        cleaned = {name: self.item.walk(item, step(path, name), findings) for name, item in value.items()}
        return {name: item for name, item in cleaned.items() if item is not FAULTY}


@dataclass(frozen=True)
class FieldCheck:
    """A field of an object; ``is_null_absent`` says that null means the field was not given."""

    check: Check
    is_null_absent: bool


@dataclass(frozen=True)
class Fields:
    """An object with known fields. ``elsewhere`` tells where a name lives that was put at the wrong level."""

    allowed: str
    fields: dict[str, FieldCheck]
    required: tuple[str, ...]
    elsewhere: dict[str, str]

    def fits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if not isinstance(value, dict):
            findings.add(path, value, self.allowed)
            return FAULTY
        cleaned: dict[str, Any] = {}
        for name, item in value.items():
            known = self.fields.get(name) if isinstance(name, str) else None
            if known is None:
                self._add_unknown(name, item, path, findings)
            elif not (item is None and known.is_null_absent):
                kept = known.check.walk(item, f"{path}/{name}", findings)
                if kept is not FAULTY:
                    cleaned[name] = kept
        for name in self.required:
            if name not in value:
                allowed = self.fields[name].check.allowed
                findings.add(
                    f"{path}/{name}", None, allowed, message=f"{path}/{name} is missing; it must be {allowed}."
                )
        return cleaned if all(name in cleaned for name in self.required) else FAULTY

    def _add_unknown(self, name: Any, item: Any, path: str, findings: Findings) -> None:
        if findings.is_full:
            return  # looking for what was meant costs more than a hostile flow's thousandth mistake is worth
        suggestion = nearest(name, self.fields)
        if suggestion is None and (elsewhere := nearest(name, self.elsewhere)):
            suggestion = self.elsewhere[elsewhere]
        suggestion = suggestion or _homes().get(_plain(name))
        hint = f"did you mean {suggestion}?" if suggestion else f"known here: {', '.join(self.fields)}."
        findings.add(
            step(path, name),
            item,
            "one of the fields " + ", ".join(self.fields),
            message=f"{step(path, name)} is not a field of a flow; {hint}",
        )


def did_you_mean(value: object, words: Iterable[str]) -> str | None:
    """The end of a message about a word that is nearly right."""
    suggestion = nearest(value, words)
    return f"Did you mean {suggestion}?" if suggestion else None


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None."""
    if not isinstance(name, str) or len(name) > 100:
        return None
    by_plain = {_plain(word): word for word in known}
    matches = difflib.get_close_matches(_plain(name), by_plain, n=1)
    return by_plain[matches[0]] if matches else None


def _plain(name: object) -> str:
    """A name without the ways in which people spell the same one."""
    return str(name).lower().replace("_", "") if isinstance(name, str) else ""


@functools.cache
def _homes() -> dict[str, str]:
    """Where every field of every block lives, for names that were put into the wrong block."""
    homes: dict[str, str] = {}
    for kind, struct in BLOCKS.items():
        check = check_of(struct)
        if isinstance(check, Fields):
            for name, path in [*((name, name) for name in check.fields), *check.elsewhere.items()]:
                homes.setdefault(_plain(name), f"{path} of the block {kind}")
    return homes


@functools.cache
def check_of(struct: type[msgspec.Struct]) -> Check:
    """The check of a struct, built on first use."""
    return check_of_type(inspect.type_info(struct))


def check_of_type(kind: inspect.Type, extra: Mapping[str, Any] = NOTHING) -> Check:
    """The check of anything a field may be typed as; ``extra`` is what its ``Meta`` says besides the limits."""
    match kind:
        case inspect.Metadata():
            return check_of_type(kind.type, {**extra, **(kind.extra or {})})
        case inspect.BoolType():
            return Leaf("true or false", lambda value: isinstance(value, bool))
        case inspect.NoneType():
            return Leaf("null", lambda value: value is None)
        case inspect.AnyType():
            return Leaf("any value", lambda value: True)
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
        case inspect.StrType():
            return _text(kind, extra)
        case inspect.LiteralType():
            return _words(tuple(str(word) for word in kind.values))
        case inspect.UnionType():
            options = tuple(check_of_type(option, extra) for option in kind.types)
            return Choice(_or(sorted([option.allowed for option in options], key=_null_last)), options)
        case inspect.ListType():
            return _items(check_of_type(kind.item_type), kind.min_length or 0, kind.max_length)
        case inspect.TupleType():
            return _items(check_of_type(kind.item_types[0]), len(kind.item_types), len(kind.item_types))
        case inspect.DictType():
            item = check_of_type(kind.value_type)
            return Entries(f"an object whose values are each {item.allowed}", item)
        case inspect.StructType():
            return _fields(kind)
        case _:
            raise TypeError(f"no check for {kind}; add one to runyard.flows.checks")


def _number(kind: inspect.IntType | inspect.FloatType) -> Leaf:
    is_int = isinstance(kind, inspect.IntType)
    low, high = (kind.ge if kind.gt is None else kind.gt), (kind.le if kind.lt is None else kind.lt)
    if low is None or high is None:
        raise TypeError(f"every number in a flow has two limits; {kind} lacks one")
    least, most, gt, lt = low, high, kind.gt is not None, kind.lt is not None

    def fits(value: Any) -> bool:
        # bool is an int to Python, and a number without limits to nobody.
        if type(value) is not int and (is_int or type(value) is not float):
            return False
        return (value > least if gt else value >= least) and (value < most if lt else value <= most)

    if not is_int and (gt or lt):
        words = f"a number {'above' if gt else 'from'} {low} {'to below' if lt else 'to'} {high}"
    else:
        words = f"{'an integer' if is_int else 'a number'} from {low} to {high}"
    return Leaf(words, fits)


def _words(words: tuple[str, ...]) -> Leaf:
    known = frozenset(words)
    return Leaf(_or([f'"{word}"' for word in words]), lambda value: isinstance(value, str) and value in known, words)


def _text(kind: inspect.StrType, extra: Mapping[str, Any]) -> Leaf:
    if "words" in extra:
        return _words(extra["words"])
    shortest, longest = kind.min_length or 0, kind.max_length or math.inf
    pattern = re.compile(kind.pattern) if kind.pattern else None

    def fits(value: Any) -> bool:
        return (
            isinstance(value, str)
            and shortest <= len(value) <= longest
            and (pattern is None or pattern.fullmatch(value) is not None)
        )

    form = extra.get("form") or f"a text of {f'{shortest} to ' if shortest else 'at most '}{longest} characters"
    return Leaf(str(form), fits)


def _items(item: Check, shortest: int, longest: int | None) -> Items:
    longest = LONGEST_LIST if longest is None else longest
    count = str(shortest) if longest == shortest else f"{f'{shortest} to' if shortest else 'at most'} {longest}"
    # A faulty block leaves the others their places; a list of plain values with a hole would mean something else.
    if isinstance(item, Fields):
        return Items(f"a list of {count} objects", item, shortest, longest, True)
    return Items(f"a list of {count}, each {item.allowed}", item, shortest, longest, False)


def _fields(kind: inspect.StructType) -> Fields:
    fields = {}
    elsewhere: dict[str, str] = {}
    for field in kind.fields:
        check = check_of_type(field.type)
        fields[field.encode_name] = FieldCheck(check, field.default == "auto" or default_in_words(field) is not None)
        for option in check.options if isinstance(check, Choice) else (check,):
            if isinstance(option, Fields):
                for name in option.fields:
                    elsewhere.setdefault(name, f"{field.encode_name}.{name}")
                for name, path in option.elsewhere.items():
                    elsewhere.setdefault(name, f"{field.encode_name}.{path}")
    required = tuple(field.encode_name for field in kind.fields if field.required)
    return Fields(f"an object with the fields {', '.join(fields)}", fields, required, elsewhere)


def default_in_words(field: inspect.Field) -> str | None:
    """What ``told(..., default=...)`` says of a field whose default depends on others."""
    kind = field.type
    while isinstance(kind, inspect.Metadata):
        if kind.extra and "default" in kind.extra:
            return str(kind.extra["default"])
        kind = kind.type
    return None


def _null_last(words: str) -> tuple[bool, int]:
    return words == "null", len(words)


def _or(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"
