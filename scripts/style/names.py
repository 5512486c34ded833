"""Words in identifiers and prose.

docs/decisions/vocabulary.md lists the words of the former dialect and the standard words.
"""

import re
from itertools import pairwise


def parse_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of the former dialect in identifiers; docs/decisions/vocabulary.md has the standard words.
BANNED_WORDS = parse_words(
    "told tell tells telling lie lies lying beside picture pictures seam seams door house fault "
    "faults cure cures remedy remedies pulse pulses lived heed heeds outlook taker steadiness "
    "asking"
)
BANNED_PHRASES = {
    tuple(phrase.split("_")) for phrase in parse_words("go_on goes_on going_on taken_up look_ahead")
}
# The same dialect in docstrings, comments, messages and docs.
DIALECT = re.compile(
    r"\b(told|tells?|telling|lies?|lying|beside|(goes|go|went|gone|going) on|pictures?|seams?|"
    r"remed(y|ies)|cures?|anew|whoever|want of|at fault|like length)\b",
    re.IGNORECASE,
)
# Participles that do not end in "ed". Words that are also verbs in the imperative (read, set, put,
# cut, split) are left out.
IRREGULAR_PARTICIPLES = parse_words(
    "begun born bound broken brought built bought caught chosen done drawn driven fallen fed felt "
    "found forgotten given gone held hidden kept known laid led left lent lost made meant met paid "
    "proven said seen sent shown sought sold spent spoken stood sworn taken taught thought thrown "
    "told understood won worn written wound"
)
NOT_PARTICIPLES = parse_words(
    "need feed seed speed embed exceed proceed succeed shed bed red indeed"
)


QUESTION = re.compile(r"(What|Whether|How)\b")


def split_words(identifier: str) -> list[str]:
    """Return the lower-case words of a snake_case or CamelCase identifier."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)]


def is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def is_one_word(name: str) -> bool:
    return "_" not in name.strip("_")


def is_participle(name: str) -> bool:
    """Return whether a name opens with a past participle, such as ``offered`` or ``taken_up``."""
    first = name.strip("_").partition("_")[0]
    return first in IRREGULAR_PARTICIPLES or (first.endswith("ed") and first not in NOT_PARTICIPLES)


def has_banned_word(identifier: str) -> bool:
    words = split_words(identifier)
    pairs = set(pairwise(words))
    return not BANNED_WORDS.isdisjoint(words) or not pairs.isdisjoint(BANNED_PHRASES)
