"""Flow v1 as JSON Schema (draft 2020-12), for editors and for anybody who wants to check a flow without us.

It is made from the structs of ``blocks``. What must fit together across fields is for ``validate`` alone to say.
"""

from typing import Any

import msgspec
from msgspec import inspect

from runyard.flows.blocks import BLOCKS, FRAGMENTS, FlowShape, Shape
from runyard.flows.checks import default_in_words

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema of a whole flow; each call makes a new one."""
    _, components = msgspec.json.schema_components([FlowShape, *BLOCKS.values()], ref_template="#/$defs/{name}")
    for struct in _structs(FlowShape, *BLOCKS.values()):
        _tell_defaults(struct, components[struct.__name__])
    components["Block"] = _block(components["Block"])
    flow = components.pop("FlowShape")
    return {"$schema": DIALECT, **flow, "title": "Runyard flow v1", "$defs": components}


def _structs(*roots: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Every struct that can be reached from the given ones."""
    found: dict[type[msgspec.Struct], None] = {}
    waiting: list[Any] = [inspect.type_info(root) for root in roots]
    while waiting:
        match waiting.pop():
            case inspect.StructType() as kind if kind.cls not in found:
                found[kind.cls] = None
                waiting += [field.type for field in kind.fields]
            case inspect.Metadata() as kind:
                waiting.append(kind.type)
            case inspect.UnionType() as kind:
                waiting += kind.types
            case inspect.ListType() as kind:
                waiting.append(kind.item_type)
    return list(found)


def _tell_defaults(struct: type[msgspec.Struct], document: dict[str, Any]) -> None:
    """Say dependent defaults in words, and accept null wherever it means that nothing was given."""
    info = inspect.type_info(struct)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{struct} is not a struct")
    for field in info.fields:
        words = default_in_words(field)
        if words is None and field.default != "auto":
            continue
        known = document["properties"][field.encode_name]
        description = known.pop("description", "")
        default = known.pop("default", None)
        changed: dict[str, Any] = {"description": description, "anyOf": [known, {"type": "null"}]}
        if words is None:
            changed["default"] = default
        else:
            changed["description"] = f"{description} (default: {words})"
        document["properties"][field.encode_name] = changed


def _block(plain: dict[str, Any]) -> dict[str, Any]:
    """A block's settings depend on its name: whose fragment it contains, that schema holds."""
    rules = [
        {
            "if": {"properties": {"block": {"pattern": fragment}}, "required": ["block"]},
            "then": {"properties": {"settings": {"anyOf": [{"$ref": _ref(BLOCKS[kind])}, {"type": "null"}]}}},
        }
        for fragment, kind in FRAGMENTS.items()
    ]
    name = plain["properties"]["block"] | {"pattern": "|".join(FRAGMENTS)}
    return plain | {"properties": plain["properties"] | {"block": name}, "allOf": rules}


def _ref(struct: type[Shape]) -> str:
    return f"#/$defs/{struct.__name__}"
