"""The keys that join the members of a shard.

A key is the name up to the first point of its last part: ``a/7`` of ``a/7.seg.png``. If no member
of a key then has a plain ending, the points belong to the key: ``22.05.jpg`` and ``22.05.txt`` have
the key ``22.05``.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
TEXT_ENDINGS = ("json", "txt", "caption", "cls")
ENDINGS = frozenset((*IMAGE_ENDINGS, *TEXT_ENDINGS))


class MemberKey(NamedTuple):
    """The key of a member, and its ending in lower case, such as ``jpg`` or ``seg.png``."""

    key: str
    ending: str


class ShardKeys:
    """The keys of the members of a shard, from all of their names.

    ``groups`` is the number of keys. ``is_scattered`` means that members of some key do not follow
    each other.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._longer: dict[str, MemberKey] = {}
        self._find_longer(names)
        self.groups, self.is_scattered = self._count_groups(names)

    def split(self, name: str) -> MemberKey:
        return self._longer.get(name) or _split_name(name, 1)

    def has_pair(self, names: Sequence[str]) -> bool:
        """Return whether some key has both an image and a text."""
        members = [self.split(name) for name in names]
        images = {member.key for member in members if member.ending in IMAGE_ENDINGS}
        return any(member.key in images for member in members if member.ending in TEXT_ENDINGS)

    def _find_longer(self, names: Iterable[str]) -> None:
        plain: set[str] = set()
        dotted: dict[str, list[str]] = {}
        for name in names:
            member = _split_name(name, 1)
            if "." in member.ending:
                dotted.setdefault(member.key, []).append(name)
            elif member.ending in ENDINGS:
                plain.add(member.key)
        points = 2
        while dotted:
            deeper: dict[str, list[str]] = {}
            for key, members in dotted.items():
                if key not in plain:
                    self._assign(members, points, deeper)
            plain, dotted, points = set(), deeper, points + 1

    def _assign(self, names: Iterable[str], points: int, deeper: dict[str, list[str]]) -> None:
        """Assign the keys up to this many points, or put names aside for longer keys."""
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(_split_name(name, points).key, []).append(name)
        for key, members in groups.items():
            split = {name: _split_name(name, points) for name in members}
            if any(member.ending in ENDINGS for member in split.values()):
                self._longer.update(split)
            elif any("." in member.ending for member in split.values()):
                deeper[key] = members

    def _count_groups(self, names: Iterable[str]) -> tuple[int, bool]:
        seen: set[str] = set()
        last, is_scattered = None, False
        for name in names:
            key, ending = self.split(name)
            if ending in ENDINGS and key != last:
                is_scattered = is_scattered or key in seen
                seen.add(key)
                last = key
        return len(seen), is_scattered


def _split_name(name: str, points: int) -> MemberKey:
    """Split a name at this point of its last part, counted from 1."""
    folder, slash, last = name.rpartition("/")
    parts = last.split(".")
    key = folder + slash + ".".join(parts[:points])
    return MemberKey(key, ".".join(parts[points:]).lower())
