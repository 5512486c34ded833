"""Search in the texts of log lines: by a literal text or by a regular expression.

Expressions are matched by RE2 (of pyarrow), whose time is linear in the length of a text: there is
no pattern with which a request could occupy the server. It supports no lookaround and no
backreferences.

A search is prepared for two faster checks that every match passes. ``literals`` are texts of which
a matching line contains at least one, ignoring the case of ASCII letters; the database checks them.
A ``signature`` is a set of hashed trigrams and numbers of a block of lines, by which blocks
without a match are skipped unread. An expression without literals is matched with all lines of a
block at once before it is matched with each.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runyard.server.services.errors import Problem, Refusal

MAX_PATTERN = 1000  # characters
MIN_LITERAL = 3  # a shorter one has no trigram
MAX_LITERALS = 8
SIGNATURE_BITS = 1 << 15
DIGITS = 5
SLICE_BYTES = 256 << 10  # matched, and signed, at once
_NUMBERS_BEGIN = 1 << 24  # above every trigram
# The beginning or the end of a whole text, and flags, which might change what they mean.
_ABOUT_TEXT = re.compile(r"\\[AzZ]|\(\?(?!:)")
_HASH_FACTOR, _HASH_SHIFT = 0x9E3779B1, 17  # 32 bits, of which the upper 15 are used


@dataclass(frozen=True)
class Search:
    """What a line's text must contain."""

    pattern: str
    is_regex: bool
    is_case_sensitive: bool
    literals: tuple[str, ...]

    @property
    def is_for_blocks(self) -> bool:
        """Return whether nothing but ``may_match`` can skip lines."""
        return self.is_regex and not self.literals and not _ABOUT_TEXT.search(self.pattern)

    def may_match(self, lines: str) -> bool:
        """Return False only if none of the lines of a text matches."""
        # Every line is at the end and the beginning of a line of the text, as it is of itself.
        pattern = f"(?m){self.pattern}"
        return _match_regex(pattern, [lines], ignore_case=not self.is_case_sensitive)[0]

    def match(self, texts: Sequence[str]) -> list[bool]:
        """Return which of these texts match."""
        if self.is_regex:
            return _match_regex(self.pattern, texts, ignore_case=not self.is_case_sensitive)
        if self.is_case_sensitive:
            return [self.pattern in text for text in texts]
        folded = fold_case(self.pattern)
        return [folded in fold_case(text) for text in texts]


def parse_search(pattern: str, *, is_regex: bool, is_case_sensitive: bool) -> Search:
    """Return a search, prepared.

    Raises:
        Refusal: InvalidQuery; the pattern is too long or no expression of RE2.
    """
    if len(pattern) > MAX_PATTERN:
        raise _invalid_search(pattern, f"has {len(pattern)} characters; at most {MAX_PATTERN} fit")
    if is_regex:
        import pyarrow

        try:
            _match_regex(pattern, [""], ignore_case=not is_case_sensitive)
        except pyarrow.ArrowInvalid as error:
            why = str(error).partition(": ")[2] or str(error)
            raise _invalid_search(
                pattern,
                f"is no regular expression: {why}; try: the syntax of RE2, which has no lookaround "
                "and no backreferences, or search for the text itself without regex",
            ) from error
        literals = find_literals(pattern)
    else:
        literals = _choose_literals([pattern])
    return Search(pattern, is_regex, is_case_sensitive, literals)


def fold_case(text: str) -> str:
    """Return a text without case.

    Each letter that RE2 takes for the same as an ASCII letter becomes that letter.
    """
    return text.lower().replace("\u017f", "s")


def find_literals(pattern: str) -> tuple[str, ...]:
    """Return ASCII texts of which every match of a regular expression contains one.

    Empty when there are none or the expression is beyond this reader, which does not look into
    groups.
    """
    found: list[str] = []
    for branch in _split_branches(pattern):
        longest = max(branch, key=len, default="")
        found.append(longest)
    return _choose_literals(found)


def build_signature(texts: Iterable[str]) -> bytes:
    """Return the hashed trigrams of these texts, and the five digits in a row, as bits.

    Logs count and measure, so every block has nearly every group of three digits; five in a row
    distinguish numbers.
    """
    import pyarrow as pa

    data = fold_case("\n".join(texts)).encode()
    bits = bytearray(SIGNATURE_BITS // 8)
    for start in range(0, max(0, len(data) - 2), SLICE_BYTES):
        part = data[start : start + SLICE_BYTES + DIGITS - 1]
        letters = pa.Array.from_buffers(pa.uint8(), len(part), [None, pa.py_buffer(part)])
        for found in (_list_trigrams(letters), _list_numbers(letters)):
            for bit in _hash_all(found):
                bits[bit >> 3] |= 1 << (bit & 7)
    return bytes(bits)


def _list_trigrams(letters: Any) -> Any:
    """Return the distinct trigrams of an array of bytes, each as a number of 24 bits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wide, count = letters.cast(pa.uint32()), len(letters) - 2
    first = pc.shift_left(wide[:count], pa.scalar(16, pa.uint32()))
    second = pc.shift_left(wide[1 : count + 1], pa.scalar(8, pa.uint32()))
    return pc.unique(pc.bit_wise_or(pc.bit_wise_or(first, second), wide[2:]))


def _list_numbers(letters: Any) -> Any:
    """Return the distinct groups of ``DIGITS`` digits in a row, each as a number beyond 24 bits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digits = pc.subtract(letters, pa.scalar(ord("0"), pa.uint8()))  # others wrap above 9
    are_digits = pc.less_equal(digits, pa.scalar(9, pa.uint8()))
    count = max(0, len(letters) - DIGITS + 1)
    begins = are_digits[:count]
    for shift in range(1, DIGITS):
        begins = pc.and_(begins, are_digits[shift : count + shift])
    at = pc.indices_nonzero(begins)
    numbers = pa.array([0] * len(at), pa.uint32())
    for shift in range(DIGITS):
        digit = digits[shift:].take(at).cast(pa.uint32())
        numbers = pc.add(pc.multiply(numbers, pa.scalar(10, pa.uint32())), digit)
    return pc.add(pc.unique(numbers), pa.scalar(_NUMBERS_BEGIN, pa.uint32()))


def _hash_all(values: Any) -> list[int]:
    """Return the bits of these numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # A plain number would widen the array; these products are modulo 2**32.
    products = pc.multiply(values, pa.scalar(_HASH_FACTOR, pa.uint32()))
    found: list[int] = pc.unique(
        pc.shift_right(products, pa.scalar(_HASH_SHIFT, pa.uint32()))
    ).to_pylist()
    return found


def may_match(signature: bytes, literal_bits: Sequence[Sequence[int]]) -> bool:
    """Return whether texts with this signature may contain one of the literals."""
    return any(all(signature[bit >> 3] & (1 << (bit & 7)) for bit in bits) for bits in literal_bits)


def list_bits(literal: str) -> list[int]:
    """Return the bits of a signature that a text with this literal has set."""
    data = fold_case(literal).encode()
    values = {data[i] << 16 | data[i + 1] << 8 | data[i + 2] for i in range(len(data) - 2)}
    for i in range(len(data) - DIGITS + 1):
        group = data[i : i + DIGITS]
        if group.isdigit():
            values.add(_NUMBERS_BEGIN + int(group))
    return sorted({(value * _HASH_FACTOR & 0xFFFFFFFF) >> _HASH_SHIFT for value in values})


def _match_regex(pattern: str, texts: Sequence[str], *, ignore_case: bool) -> list[bool]:
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(texts, pa.string())
    found: list[bool] = pc.match_substring_regex(
        array, pattern, ignore_case=ignore_case
    ).to_pylist()
    return found


def _choose_literals(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the longest ASCII part of each text; empty if one has none that is long enough."""
    chosen = {max(re.findall(r"[\x20-\x7e]+", text), key=len, default="") for text in texts}
    if len(chosen) > MAX_LITERALS or any(len(text) < MIN_LITERAL for text in chosen):
        return ()
    return tuple(sorted(chosen))


def _split_branches(pattern: str) -> list[list[str]]:
    """Return, for each branch of the alternation, runs of characters that its matches contain.

    Characters in groups and classes, escapes, and what is repeated are left out. An expression with
    an escape that takes the characters after it counts as without runs.
    """
    if re.search(r"\\[QxpP0-9]", pattern):
        return [[]]
    branches: list[list[str]] = [[]]
    run = ""
    for part in _split_parts(pattern):
        if len(part) == 1 and part not in _META:
            run += part
            continue
        if part[0] in "*?{":
            run = run[:-1]  # its last character may be missing
        branches[-1].append(run)
        run = ""
        if part == "|":
            branches.append([])
    branches[-1].append(run)
    return branches


_META = frozenset("\\^$.|?*+()[]{}")
_PART = re.compile(
    r"\\(?P<escaped>[^A-Za-z0-9])"  # an escaped character that stands for itself
    r"|\\."
    r"|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]"
    r"|\{[0-9]+(?:,[0-9]*)?\}\??"
    r"|[*+?]\??"
    r"|.",
    re.DOTALL,
)


def _split_parts(pattern: str) -> Iterator[str]:
    """Yield literal characters and what separates them; a group is one part."""
    depth = 0
    for found in _PART.finditer(pattern):
        part = found["escaped"] or found[0]
        if found["escaped"] and part in _META:
            part = f"\\{part}"  # not used as a literal: it would be read as a metacharacter
        if part == "(":
            depth += 1
        elif part == ")":
            depth -= 1
            yield "()"
        elif depth == 0:
            yield part


def _invalid_search(pattern: str, why: str) -> Refusal:
    message = f"query parameter 'search' is {pattern[:80]!r}, which {why}"
    problem: Any = Problem(
        path="?search", given=pattern[:80], allowed="a text, or an expression", message=message
    )
    return Refusal("InvalidQuery", message, problems=[problem])
