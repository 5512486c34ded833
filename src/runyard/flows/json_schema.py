"""Flow v1 as JSON Schema (draft 2020-12), for editors and for checks of a flow without Runyard.

It is generated from the structs of ``blocks``. Only ``validate`` checks consistency across fields.
"""

from typing import Any

import msgspec
from msgspec import inspect

from runyard.flows.blocks import BLOCKS, FRAGMENTS, FlowShape, Shape
from runyard.flows.checks import describe_default

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Build the schema of a whole flow; each call returns a new document."""
    _, components = msgspec.json.schema_components(
        [FlowShape, *BLOCKS.values()], ref_template="#/$defs/{name}"
    )
    for struct in _collect_structs(FlowShape, *BLOCKS.values()):
        _describe_defaults(struct, components[struct.__name__])
    components["Block"] = _build_block(components["Block"])
    flow = components.pop("FlowShape")
    return {"$schema": DIALECT, **flow, "title": "Runyard flow v1", "$defs": components}


def _collect_structs(*roots: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """Collect every struct that can be reached from the given ones."""
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


def _describe_defaults(struct: type[msgspec.Struct], document: dict[str, Any]) -> None:
    """Describe dependent defaults in words, and accept null if it means that nothing was given."""
    info = inspect.type_info(struct)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{struct} is not a struct")
    for field in info.fields:
        words = describe_default(field)
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


def _build_block(plain: dict[str, Any]) -> dict[str, Any]:
    """Make the schema of a block's settings depend on the fragment that its name contains."""
    rules = [
        {
            "if": {"properties": {"block": {"pattern": fragment}}, "required": ["block"]},
            "then": {
                "properties": {
                    "settings": {"anyOf": [{"$ref": _make_ref(BLOCKS[kind])}, {"type": "null"}]}
                }
            },
        }
        for fragment, kind in FRAGMENTS.items()
    ]
    name = plain["properties"]["block"] | {"pattern": "|".join(FRAGMENTS)}
    return plain | {"properties": plain["properties"] | {"block": name}, "allOf": rules}


def _make_ref(struct: type[Shape]) -> str:
    return f"#/$defs/{struct.__name__}"
