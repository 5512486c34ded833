"""Flows on the command line: a JSON or YAML file, or a flow id, with single values set by
``--set``.

YAML is read by a safe loader without aliases: flows do not need them, and a few nested aliases
expand to gigabytes. No value is changed silently. Duplicate keys and numbers that would become zero
are rejected here; NaN and infinity are rejected with their path by the SDK or the validation. YAML
numbers follow version 1.2, so that ``010`` is not eight and ``1:30`` not ninety.
"""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE, CommandFailed

if TYPE_CHECKING:
    import vi

SUFFIXES = (".json", ".yaml", ".yml")
TOP_LEVEL = ("name", "schema", "trainingProject", "tolerations", "settings")
DEFAULT_FLOW: dict[str, Any] = {
    "name": "Quick Training",
    "schema": "v1",
    "blocks": [],
    "settings": {},
    "tolerations": {},
}

set_option = click.option(
    "--set",
    "assignments",
    metavar="PATH=VALUE",
    multiple=True,
    help="Value to set, such as vi-model.hyperparameters.epochs=5 or settings.seed=3. Repeatable.",
)

YAML_INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
YAML_FLOAT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)


def is_file_name(given: str) -> bool:
    """Return True if a FILE|FLOW_ID argument is a file name."""
    return Path(given).suffix.lower() in SUFFIXES or "/" in given or given == "-"


def read_flow_file(given: str) -> Any:
    """Return the flow in a JSON or YAML file; ``-`` reads JSON or YAML from standard input.

    Raises:
        CommandFailed: The file is missing or malformed.
    """
    try:
        with click.open_file(given, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise CommandFailed(f"flow file {given} does not exist", exit_code=EXIT_NOT_FOUND) from None
    except UnicodeDecodeError as error:
        raise CommandFailed(
            f"{given} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    if Path(given).suffix.lower() == ".json":
        return _read_json(given, text)
    return _read_yaml(given, text)


def apply_assignments(flow: Any, assignments: Sequence[str]) -> Any:
    """Return the flow with values set, such as ``vi-model.hyperparameters.epochs=5``.

    The first name is a field of the flow, or a block, which is added if it is missing. A value is
    parsed as JSON if possible, and is text otherwise.

    Raises:
        CommandFailed: An assignment is malformed, or its path leads through a value that is not an
            object.
    """
    if not assignments:
        return flow
    if not isinstance(flow, dict):
        raise CommandFailed("the flow must be a JSON or YAML object")
    flow = copy.deepcopy(flow)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.split(".")
        if not equals or not all(names):
            raise CommandFailed(
                f"--set {assignment!r} is malformed, expected: PATH=VALUE; try: "
                "vi-model.hyperparameters.epochs=5",
                exit_code=EXIT_USAGE,
            )
        _assign(flow, names, _parse_value(text, assignment), assignment)
    return flow


def resolve_flow_argument(
    client: "vi.Client", given: str | None, assignments: Sequence[str]
) -> Any:
    """Return the flow argument of ``client.runs.create``: a flow id, or a flow."""
    if given is not None and not is_file_name(given) and not assignments:
        return given
    return apply_assignments(load_flow(client, given), assignments)


def load_flow(client: "vi.Client", given: str | None) -> Any:
    """Return the flow of a file name or a flow id; the default flow for None."""
    if given is None:
        return DEFAULT_FLOW
    if is_file_name(given):
        return read_flow_file(given)
    import msgspec

    return msgspec.to_builtins(client.flows.get(given).spec)


def _read_json(name: str, text: str) -> Any:
    try:
        return _parse_json(text, name=name)
    except ValueError as error:
        raise CommandFailed(f"{name} is not JSON: {error}") from error
    except RecursionError:
        raise CommandFailed(f"{name} is nested too deeply") from None


def _parse_json(text: str, *, name: str) -> Any:
    """Return parsed JSON.

    Raises:
        ValueError: The text is not JSON.
        CommandFailed: A key is duplicated, or a number would become zero.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CommandFailed(
                f"{name} has the key {twice!r} twice in one object; try: remove one of them"
            )
        return document

    return json.loads(
        text, object_pairs_hook=unique, parse_float=lambda digits: _float(digits, name=name)
    )


def _float(digits: str, *, name: str) -> float:
    number = float(digits)
    if number == 0 and re.search("[1-9]", re.split("[eE]", digits)[0]):
        raise CommandFailed(
            f"{name} has the number {digits}, which is too small for a 64-bit float; try: 0"
        )
    return number


def _read_yaml(name: str, text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise CommandFailed(
            "YAML files require the package pyyaml; try: install it, or use a .json file"
        ) from error

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                where = self.peek_event().start_mark.line + 1
                raise CommandFailed(
                    f"{name} uses an alias in line {where}; try: write the value itself"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            document = super().construct_mapping(node, deep=deep)
            if len(document) < len(node.value):
                keys = [self.construct_object(key, deep=True) for key, _ in node.value]
                number, twice = next((n, key) for n, key in enumerate(keys) if key in keys[:n])
                line = node.value[number][0].start_mark.line + 1
                raise CommandFailed(
                    f"{name} has the key {twice!r} twice, again in line {line}; try: remove one of "
                    "them"
                )
            return document

        def construct_yaml_float(self, node: Any) -> float:
            digits = self.construct_scalar(node).replace("_", "").lower()
            is_word = digits.endswith(("inf", "nan"))
            return super().construct_yaml_float(node) if is_word else _float(digits, name=name)

    PlainLoader.add_constructor("tag:yaml.org,2002:float", PlainLoader.construct_yaml_float)
    # A date is text, as in JSON.
    PlainLoader.yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # YAML 1.1 reads 2e-4 as text because it has no dot, 010 as eight and 1:30 as ninety.
    for tag, pattern in (("int", YAML_INTEGER), ("float", YAML_FLOAT)):
        PlainLoader.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", pattern, list("-+.0123456789")
        )
    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - derived from the safe loader
    except RecursionError:
        raise CommandFailed(f"{name} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError for a tag such as !!int before text
        raise CommandFailed(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def _parse_value(text: str, assignment: str) -> Any:
    try:
        return _parse_json(text, name=f"--set {assignment!r}")
    except ValueError:
        return text
    except RecursionError:
        raise CommandFailed(
            "the value of --set is nested too deeply", exit_code=EXIT_USAGE
        ) from None


def _assign(flow: dict[str, Any], names: list[str], value: Any, assignment: str) -> None:
    first, *rest = names
    if first in TOP_LEVEL:
        target: Any = flow
        rest = names
    else:
        target = _get_block_settings(flow, first)
    if not rest:
        raise CommandFailed(
            f"--set {assignment!r} names the block {first} but no setting; try: "
            f"{first}.SETTING=VALUE",
            exit_code=EXIT_USAGE,
        )
    for name in rest[:-1]:
        if not isinstance(target, dict):
            break
        target = target.setdefault(name, {})
    if not isinstance(target, dict):
        raise CommandFailed(f"--set {assignment!r} leads through a value that is not an object")
    target[rest[-1]] = value


def _get_block_settings(flow: dict[str, Any], name: str) -> Any:
    """Return the settings of a block, which is added if it is missing.

    None if blocks is not a list.
    """
    blocks = flow.setdefault("blocks", [])
    for block in blocks if isinstance(blocks, list) else []:
        if isinstance(block, dict) and block.get("block") == name:
            return block.setdefault("settings", {})
    if not isinstance(blocks, list):
        return None
    settings: dict[str, Any] = {}
    blocks.append({"block": name, "settings": settings, "style": {}})
    return settings
