"""Walks a value beside a struct of ``blocks`` and notes every mistake, where msgspec's own decoding stops at the first.

A check is built once per struct from msgspec's description of it, so the structs stay the only definition. Each check
returns the value cleaned of nulls that mean "not given": a null where the default is ``auto``, or depends on other
fields, is dropped. What passes a check without a finding decodes with msgspec; a property test holds the two together.
"""

import difflib
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import inspect

from runyard.flows.problems import Findings, step

# Deeper than any recipe, and shallow enough that every JSON reader on the way copes.
DEEPEST = 32


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
        """Note what is wrong with the value and return it cleaned."""
        ...


@dataclass(frozen=True)
class Leaf:
    """A value with nothing inside."""

    allowed: str
    is_right: Callable[[Any], bool]

    def fits(self, value: Any) -> bool:
        return self.is_right(value)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if not self.is_right(value):
            findings.add(path, value, self.allowed)
        return value


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
        findings.add(path, value, self.allowed)
        return value


@dataclass(frozen=True)
class Items:
    """A list of alike items."""

    allowed: str
    item: Check
    shortest: int
    longest: int

    def fits(self, value: Any) -> bool:
        return isinstance(value, list | tuple)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if not self.fits(value) or not self.shortest <= len(value) <= self.longest:
            findings.add(path, value, self.allowed)
            return value
        return [self.item.walk(item, f"{path}/{index}", findings) for index, item in enumerate(value)]


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
            return value
        return {name: self.item.walk(item, step(path, name), findings) for name, item in value.items()}


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
    elsewhere: dict[str, str]

    def fits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def walk(self, value: Any, path: str, findings: Findings) -> Any:
        if not isinstance(value, dict):
            findings.add(path, value, self.allowed)
            return value
        cleaned: dict[str, Any] = {}
        for name, item in value.items():
            known = self.fields.get(name) if isinstance(name, str) else None
            if known is None:
                self._add_unknown(name, item, path, findings)
            elif not (item is None and known.is_null_absent):
                cleaned[name] = known.check.walk(item, f"{path}/{name}", findings)
        return cleaned

    def _add_unknown(self, name: Any, item: Any, path: str, findings: Findings) -> None:
        suggestion = nearest(name, self.fields)
        if suggestion is None and (elsewhere := nearest(name, self.elsewhere)):
            suggestion = self.elsewhere[elsewhere]
        hint = f"did you mean {suggestion}?" if suggestion else f"known here: {', '.join(self.fields)}."
        findings.add(
            step(path, name),
            item,
            "one of the fields " + ", ".join(self.fields),
            message=f"{step(path, name)} is not a field of a flow; {hint}",
        )


def nearest(name: object, known: Any) -> str | None:
    """The known name that was most likely meant, or None."""
    if not isinstance(name, str) or len(name) > 100:
        return None
    by_lower = {word.lower().replace("_", ""): word for word in known}
    matches = difflib.get_close_matches(name.lower().replace("_", ""), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


@functools.cache
def check_of(struct: type[msgspec.Struct]) -> Check:
    """The check of a struct, built on first use."""
    return _check(inspect.type_info(struct))


def _check(kind: inspect.Type, form: str | None = None) -> Check:
    match kind:
        case inspect.Metadata():
            return _check(kind.type, (kind.extra or {}).get("form", form))
        case inspect.BoolType():
            return Leaf("true or false", lambda value: isinstance(value, bool))
        case inspect.NoneType():
            return Leaf("null", lambda value: value is None)
        case inspect.AnyType():
            return Leaf("any value", lambda value: True)
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
        case inspect.StrType():
            return _text(kind, form)
        case inspect.LiteralType():
            words = frozenset(kind.values)
            return Leaf(_or([f'"{word}"' for word in kind.values]), lambda v: isinstance(v, str) and v in words)
        case inspect.UnionType():
            options = tuple(_check(option, form) for option in kind.types)
            return Choice(_or([option.allowed for option in options]), options)
        case inspect.ListType():
            return _items(_check(kind.item_type), kind.min_length or 0, kind.max_length)
        case inspect.TupleType():
            return _items(_check(kind.item_types[0]), len(kind.item_types), len(kind.item_types))
        case inspect.DictType():
            item = _check(kind.value_type)
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


def _text(kind: inspect.StrType, form: str | None) -> Leaf:
    shortest, longest = kind.min_length or 0, kind.max_length or math.inf
    pattern = re.compile(kind.pattern) if kind.pattern else None

    def fits(value: Any) -> bool:
        return (
            isinstance(value, str)
            and shortest <= len(value) <= longest
            and (pattern is None or pattern.fullmatch(value) is not None)
        )

    if form is None:
        form = f"a text of {f'{shortest} to ' if shortest else 'at most '}{longest} characters"
    return Leaf(form, fits)


def _items(item: Check, shortest: int, longest: int | None) -> Items:
    if longest == shortest:
        words = f"a list of {shortest}, each {item.allowed}"
    elif isinstance(item, Fields):
        words = "a list of objects"
    else:
        words = f"a list{' of at least one' if shortest else ''}, each {item.allowed}"
    return Items(words, item, shortest, 10_000 if longest is None else longest)


def _fields(kind: inspect.StructType) -> Fields:
    fields = {}
    elsewhere: dict[str, str] = {}
    for field in kind.fields:
        check = _check(field.type)
        fields[field.encode_name] = FieldCheck(check, field.default == "auto" or default_in_words(field) is not None)
        for option in check.options if isinstance(check, Choice) else (check,):
            if isinstance(option, Fields):
                for name in option.fields:
                    elsewhere.setdefault(name, f"{field.encode_name}.{name}")
                for name, path in option.elsewhere.items():
                    elsewhere.setdefault(name, f"{field.encode_name}.{path}")
    return Fields(f"an object with the fields {', '.join(fields)}", fields, elsewhere)


def default_in_words(field: inspect.Field) -> str | None:
    """What ``told(..., default=...)`` says of a field whose default depends on others."""
    kind = field.type
    while isinstance(kind, inspect.Metadata):
        if kind.extra and "default" in kind.extra:
            return str(kind.extra["default"])
        kind = kind.type
    return None


def _or(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def check_is_json(value: Any, findings: Findings, *, path: tuple[Any, object] | None = None, depth: int = 0) -> None:
    """Note whatever a database or another JSON reader would choke on, also where a recipe may hold anything.

    ``path`` is a chain of (chain above, name), written out only for a finding, because nearly all values are fine.
    """
    if value is None or value is True or value is False:
        return
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            findings.add(_pointer(path), value, "text in Unicode without lone surrogates")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            findings.add(_pointer(path), value, "an integer of at most 63 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            findings.add(_pointer(path), value, "a finite number")
    elif isinstance(value, dict | list | tuple):
        if depth >= DEEPEST:
            findings.add(_pointer(path), value, f"nested at most {DEEPEST} deep")
            return
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in entries:
            if isinstance(value, dict):
                if not isinstance(name, str):
                    findings.add(_pointer((path, name)), name, "a field named by a text")
                    continue
                check_is_json(name, findings, path=(path, name), depth=depth + 1)
            check_is_json(item, findings, path=(path, name), depth=depth + 1)
    else:
        findings.add(_pointer(path), value, "a value that JSON has")


def _pointer(path: tuple[Any, object] | None) -> str:
    names: list[object] = []
    while path is not None:
        path, name = path
        names.append(name)
    pointer = ""
    for name in reversed(names):
        pointer = step(pointer, name)
    return pointer
