"""Validators that report every problem of a value, where msgspec's own decoding stops at the first.

A validator is built once per struct of ``blocks`` from msgspec's description of it, so the structs
stay the only definition. Each validator returns the value cleaned. It drops nulls that mean "not
given" (the default is ``auto``, or depends on other fields) and everything invalid. The rest always
decodes with msgspec, so that the checks across fields can run too. A property test compares the
two.
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
from runyard.flows.problems import ProblemCollector, join_pointer

MAX_ITEMS = 1000

# Marks an invalid value until the object around it drops it.
INVALID: Any = object()
NOTHING: Mapping[str, Any] = {}


class Validator(Protocol):
    """A validator of one value."""

    @property
    def allowed(self) -> str:
        """The allowed values, in words that follow "it must be"."""
        ...

    def accepts(self, value: Any) -> bool:
        """Return whether this validator applies: a scalar must be valid, other values must have its
        JSON type.
        """
        ...

    def validate(self, value: Any, path: str, problems: ProblemCollector) -> Any:
        """Add the value's problems; return it cleaned, or INVALID."""
        ...


@dataclass(frozen=True)
class Scalar:
    """A value without parts."""

    allowed: str
    is_valid: Callable[[Any], bool]
    words: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        return self.is_valid(value)

    def validate(self, value: Any, path: str, problems: ProblemCollector) -> Any:
        if self.is_valid(value):
            return value
        hint = None if problems.is_full else suggest(value, self.words)
        problems.add(path, value, self.allowed, hint=hint)
        return INVALID


@dataclass(frozen=True)
class Choice:
    """A value of one of several types."""

    allowed: str
    options: tuple[Validator, ...]

    def accepts(self, value: Any) -> bool:
        return any(option.accepts(value) for option in self.options)

    def validate(self, value: Any, path: str, problems: ProblemCollector) -> Any:
        for option in self.options:
            if option.accepts(value):
                return option.validate(value, path, problems)
        words = [
            word for option in self.options if isinstance(option, Scalar) for word in option.words
        ]
        hint = None if problems.is_full else suggest(value, words)
        problems.add(path, value, self.allowed, hint=hint)
        return INVALID


@dataclass(frozen=True)
class Items:
    """A list of items of one type."""

    allowed: str
    item: Validator
    shortest: int
    longest: int
    keeps_invalid: bool

    def accepts(self, value: Any) -> bool:
        return isinstance(value, list | tuple)

    def validate(self, value: Any, path: str, problems: ProblemCollector) -> Any:
        if not self.accepts(value) or not self.shortest <= len(value) <= self.longest:
            problems.add(path, value, self.allowed)
            return INVALID
        cleaned = [
            self.item.validate(item, f"{path}/{index}", problems)
            for index, item in enumerate(value)
        ]
        return INVALID if INVALID in cleaned and not self.keeps_invalid else cleaned


@dataclass(frozen=True)
class Entries:
    """An object with free names and values of one type."""

    allowed: str
    item: Validator

    def accepts(self, value: Any) -> bool:
        return isinstance(value, dict)

    def validate(self, value: Any, path: str, problems: ProblemCollector) -> Any:
        if not self.accepts(value):
            problems.add(path, value, self.allowed)
            return INVALID
        cleaned = {
            name: self.item.validate(item, join_pointer(path, name), problems)
            for name, item in value.items()
        }
        return {name: item for name, item in cleaned.items() if item is not INVALID}


@dataclass(frozen=True)
class FieldValidator:
    """A field of an object; with ``is_null_absent``, null means that the field was not given."""

    validator: Validator
    is_null_absent: bool


@dataclass(frozen=True)
class Fields:
    """An object with known fields.

    ``elsewhere`` maps names at the wrong level to their right path.
    """

    allowed: str
    fields: dict[str, FieldValidator]
    required: tuple[str, ...]
    elsewhere: dict[str, str]

    def accepts(self, value: Any) -> bool:
        return isinstance(value, dict)

    def validate(self, value: Any, path: str, problems: ProblemCollector) -> Any:
        if not isinstance(value, dict):
            problems.add(path, value, self.allowed)
            return INVALID
        cleaned: dict[str, Any] = {}
        for name, item in value.items():
            known = self.fields.get(name) if isinstance(name, str) else None
            if known is None:
                self._add_unknown(name, item, path, problems)
            elif not (item is None and known.is_null_absent):
                kept = known.validator.validate(item, f"{path}/{name}", problems)
                if kept is not INVALID:
                    cleaned[name] = kept
        for name in self.required:
            if name not in value:
                allowed = self.fields[name].validator.allowed
                problems.add(
                    f"{path}/{name}",
                    None,
                    allowed,
                    message=f"{path}/{name} is missing; it must be {allowed}.",
                )
        return cleaned if all(name in cleaned for name in self.required) else INVALID

    def _add_unknown(self, name: Any, item: Any, path: str, problems: ProblemCollector) -> None:
        if problems.is_full:
            return  # suggestions for thousands of mistakes of a hostile flow cost too much
        suggestion = find_nearest(name, self.fields)
        if suggestion is None and (elsewhere := find_nearest(name, self.elsewhere)):
            suggestion = self.elsewhere[elsewhere]
        suggestion = suggestion or _list_field_locations().get(_normalize_name(name))
        hint = (
            f"did you mean {suggestion}?"
            if suggestion
            else f"known here: {', '.join(self.fields)}."
        )
        problems.add(
            join_pointer(path, name),
            item,
            "one of the fields " + ", ".join(self.fields),
            message=f"{join_pointer(path, name)} is not a field of a flow; {hint}",
        )


def suggest(value: object, words: Iterable[str]) -> str | None:
    """Return the hint about a word that is nearly right, or None."""
    suggestion = find_nearest(value, words)
    return f"Did you mean {suggestion}?" if suggestion else None


def find_nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that was most likely meant, or None."""
    if not isinstance(name, str) or len(name) > 100:
        return None
    by_plain = {_normalize_name(word): word for word in known}
    matches = difflib.get_close_matches(_normalize_name(name), by_plain, n=1)
    return by_plain[matches[0]] if matches else None


def _normalize_name(name: object) -> str:
    """Normalize the spelling of a name: lower case, no underscores."""
    return str(name).lower().replace("_", "") if isinstance(name, str) else ""


@functools.cache
def _list_field_locations() -> dict[str, str]:
    """List where every field of every block belongs, for names in the wrong block."""
    homes: dict[str, str] = {}
    for kind, struct in BLOCKS.items():
        validator = get_validator(struct)
        if isinstance(validator, Fields):
            for name, path in [
                *((name, name) for name in validator.fields),
                *validator.elsewhere.items(),
            ]:
                homes.setdefault(_normalize_name(name), f"{path} of the block {kind}")
    return homes


@functools.cache
def get_validator(struct: type[msgspec.Struct]) -> Validator:
    """Return the validator of a struct, built on first use."""
    return build_validator(inspect.type_info(struct))


def build_validator(kind: inspect.Type, extra: Mapping[str, Any] = NOTHING) -> Validator:
    """Build the validator of a field's type; ``extra`` is the extra information of its ``Meta``."""
    match kind:
        case inspect.Metadata():
            return build_validator(kind.type, {**extra, **(kind.extra or {})})
        case inspect.BoolType():
            return Scalar("true or false", lambda value: isinstance(value, bool))
        case inspect.NoneType():
            return Scalar("null", lambda value: value is None)
        case inspect.AnyType():
            return Scalar("any value", lambda value: True)
        case inspect.IntType() | inspect.FloatType():
            return _build_number(kind)
        case inspect.StrType():
            return _build_text(kind, extra)
        case inspect.LiteralType():
            return _build_words(tuple(str(word) for word in kind.values))
        case inspect.UnionType():
            options = tuple(build_validator(option, extra) for option in kind.types)
            return Choice(
                _join_or(sorted([option.allowed for option in options], key=_order_null_last)),
                options,
            )
        case inspect.ListType():
            return _build_items(
                build_validator(kind.item_type), kind.min_length or 0, kind.max_length
            )
        case inspect.TupleType():
            return _build_items(
                build_validator(kind.item_types[0]), len(kind.item_types), len(kind.item_types)
            )
        case inspect.DictType():
            item = build_validator(kind.value_type)
            return Entries(f"an object whose values are each {item.allowed}", item)
        case inspect.StructType():
            return _build_fields(kind)
        case _:
            raise TypeError(f"no validator for {kind}; add one to runyard.flows.checks")


def _build_number(kind: inspect.IntType | inspect.FloatType) -> Scalar:
    is_int = isinstance(kind, inspect.IntType)
    low, high = (kind.ge if kind.gt is None else kind.gt), (kind.le if kind.lt is None else kind.lt)
    if low is None or high is None:
        raise TypeError(f"every number in a flow needs two limits; {kind} lacks one")
    least, most, gt, lt = low, high, kind.gt is not None, kind.lt is not None

    def accepts(value: Any) -> bool:
        # In Python a bool is also an int, but it is not a number in a flow.
        if type(value) is not int and (is_int or type(value) is not float):
            return False
        return (value > least if gt else value >= least) and (value < most if lt else value <= most)

    if not is_int and (gt or lt):
        words = f"a number {'above' if gt else 'from'} {low} {'to below' if lt else 'to'} {high}"
    else:
        words = f"{'an integer' if is_int else 'a number'} from {low} to {high}"
    return Scalar(words, accepts)


def _build_words(words: tuple[str, ...]) -> Scalar:
    known = frozenset(words)
    return Scalar(
        _join_or([f'"{word}"' for word in words]),
        lambda value: isinstance(value, str) and value in known,
        words,
    )


def _build_text(kind: inspect.StrType, extra: Mapping[str, Any]) -> Scalar:
    if "words" in extra:
        return _build_words(extra["words"])
    shortest, longest = kind.min_length or 0, kind.max_length or math.inf
    pattern = re.compile(kind.pattern) if kind.pattern else None

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, str)
            and shortest <= len(value) <= longest
            and (pattern is None or pattern.fullmatch(value) is not None)
        )

    form = (
        extra.get("form")
        or f"a string of {f'{shortest} to ' if shortest else 'at most '}{longest} characters"
    )
    return Scalar(str(form), accepts)


def _build_items(item: Validator, shortest: int, longest: int | None) -> Items:
    longest = MAX_ITEMS if longest is None else longest
    count = (
        str(shortest)
        if longest == shortest
        else f"{f'{shortest} to' if shortest else 'at most'} {longest}"
    )
    # Blocks keep their index if one is invalid; a list of plain values without an invalid one would
    # change its meaning.
    if isinstance(item, Fields):
        return Items(f"a list of {count} objects", item, shortest, longest, True)
    return Items(f"a list of {count}, each {item.allowed}", item, shortest, longest, False)


def _build_fields(kind: inspect.StructType) -> Fields:
    fields = {}
    elsewhere: dict[str, str] = {}
    for field in kind.fields:
        validator = build_validator(field.type)
        fields[field.encode_name] = FieldValidator(
            validator, field.default == "auto" or describe_default(field) is not None
        )
        for option in validator.options if isinstance(validator, Choice) else (validator,):
            if isinstance(option, Fields):
                for name in option.fields:
                    elsewhere.setdefault(name, f"{field.encode_name}.{name}")
                for name, path in option.elsewhere.items():
                    elsewhere.setdefault(name, f"{field.encode_name}.{path}")
    required = tuple(field.encode_name for field in kind.fields if field.required)
    return Fields(f"an object with the fields {', '.join(fields)}", fields, required, elsewhere)


def describe_default(field: inspect.Field) -> str | None:
    """Return the default of a field in words, as given to ``help_text(..., default=...)``."""
    kind = field.type
    while isinstance(kind, inspect.Metadata):
        if kind.extra and "default" in kind.extra:
            return str(kind.extra["default"])
        kind = kind.type
    return None


def _order_null_last(words: str) -> tuple[bool, int]:
    return words == "null", len(words)


def _join_or(words: list[str]) -> str:
    unique = list(dict.fromkeys(words))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"
