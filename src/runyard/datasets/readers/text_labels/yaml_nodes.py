"""YAML files as plain text nodes, built from the parser's events within limits.

Every scalar keeps the text of the file: ``no`` is not False, and ``007`` is not 7. Depth, the count
of nodes and what aliases expand to are bounded, because a file of a few hundred bytes can expand to
billions of nodes.
"""

from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 32
MAX_NODES = 250_000
_MERGE = "<<"
_CORE_TAG = "tag:yaml.org,2002:"


class YamlRejected(Exception):
    """The file is not valid YAML or exceeds a limit; ``line`` counts from 1."""

    def __init__(self, cause: str, line: int) -> None:
        super().__init__(cause)
        self.cause, self.line = cause, line


@dataclass(slots=True)
class YamlNode:
    """One node: a scalar with ``text``, a sequence with ``items``, or a mapping with ``pairs``.

    ``size`` is the count of its nodes after all aliases are expanded.
    """

    line: int
    text: str | None = None
    items: "list[YamlNode] | None" = None
    pairs: "list[tuple[YamlNode, YamlNode]] | None" = None
    size: int = 1
    _key: "YamlNode | None" = None

    def add(self, node: "YamlNode") -> None:
        """Add a child in the order of the file: in a mapping, key and value in turn."""
        self.size += node.size
        if self.size > MAX_NODES:
            raise YamlRejected(f"it expands to more than {MAX_NODES:,} values", node.line)
        if self.items is not None:
            self.items.append(node)
        elif self._key is None:
            self._key = node
        elif self.pairs is not None:
            self.pairs.append((self._key, node))
            self._key = None

    def get(self, key: str) -> "YamlNode | None":
        """Return the value of a key of a mapping, of its own or of the mapping it merges (``<<``).

        Raises YamlRejected if the key occurs twice.
        """
        own = self._get_own(key)
        merged = self._get_own(_MERGE) if own is None else None
        return own if merged is None else merged._get_own(key)

    def _get_own(self, key: str) -> "YamlNode | None":
        found = [(name, value) for name, value in self.pairs or () if name.text == key]
        if len(found) > 1:
            lines = f"lines {found[0][0].line} and {found[1][0].line}"
            raise YamlRejected(f"the key {key!r} occurs twice, in {lines}", found[1][0].line)
        return found[0][1] if found else None


@dataclass
class _Builder:
    """The state of building a document."""

    root: YamlNode | None = None
    open_nodes: list[tuple[YamlNode, str | None]] = field(default_factory=list)
    anchors: dict[str, YamlNode] = field(default_factory=dict)

    def start(self, node: YamlNode, anchor: str | None) -> None:
        if len(self.open_nodes) >= MAX_DEPTH:
            raise YamlRejected(f"it is nested deeper than {MAX_DEPTH} levels", node.line)
        self.open_nodes.append((node, anchor))

    def end(self) -> None:
        node, anchor = self.open_nodes.pop()
        self.put(node, anchor)

    def put(self, node: YamlNode, anchor: str | None = None) -> None:
        """Put a complete node into the one that contains it."""
        if anchor is not None:
            self.anchors[anchor] = node
        if self.open_nodes:
            self.open_nodes[-1][0].add(node)
        elif self.root is None:
            self.root = node

    def put_alias(self, anchor: str, line: int) -> None:
        if anchor not in self.anchors:  # unknown, or of a node that contains this alias
            raise YamlRejected(f"the alias *{anchor} has no complete anchor before it", line)
        self.put(self.anchors[anchor])


def parse_yaml(text: str) -> YamlNode:
    """Parse a file of one document.

    Raises YamlRejected.
    """
    import yaml  # type: ignore[import-untyped]  # loaded only if there is a YAML file

    builder = _Builder()
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    line = 1
    try:
        for event in yaml.parse(text, Loader=loader):
            line = event.start_mark.line + 1
            _add_event(builder, event, line, yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        at = line if mark is None else mark.line + 1
        raise YamlRejected(f"not valid YAML: {problem}", at) from error
    return builder.root or YamlNode(1, text="")


def _add_event(builder: _Builder, event: Any, line: int, yaml: Any) -> None:
    if isinstance(event, yaml.DocumentStartEvent) and builder.root is not None:
        raise YamlRejected("it has more than one document", line)
    tag = getattr(event, "tag", None)
    if tag is not None and not _is_plain_tag(tag):
        raise YamlRejected(f"the tag {tag!r} is not supported", line)
    if isinstance(event, yaml.AliasEvent):
        builder.put_alias(event.anchor, line)
    elif isinstance(event, yaml.ScalarEvent):
        builder.put(YamlNode(line, text=event.value), event.anchor)
    elif isinstance(event, yaml.SequenceStartEvent):
        builder.start(YamlNode(line, items=[]), event.anchor)
    elif isinstance(event, yaml.MappingStartEvent):
        builder.start(YamlNode(line, pairs=[]), event.anchor)
    elif isinstance(event, yaml.CollectionEndEvent):
        builder.end()


def _is_plain_tag(tag: str) -> bool:
    return tag == "!" or (tag.startswith(_CORE_TAG) and "/" not in tag)
