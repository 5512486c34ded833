"""Recipes as they are given on the command line: a JSON or YAML file, or a flow id, and single values set on top.

YAML is read with a safe loader that knows no anchors: a recipe has no use for them, and a few lines of nested aliases
grow to gigabytes when written out. No value becomes another one silently: a key that is there twice and a number too
small to be told from zero are refused here, NaN and infinity by what takes the recipe (the SDK, or the check), with
their path. YAML numbers are those of version 1.2, so that ``010`` is not eight and ``1:30`` not ninety.
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
EMPTY_RECIPE: dict[str, Any] = {
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
    help="Set one value, as in vi-model.hyperparameters.epochs=5 or settings.seed=3. Repeatable.",
)

YAML_INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
YAML_FLOAT = re.compile(
    r"^([-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)


def names_file(given: str) -> bool:
    """Whether what was given as a flow is a file's name and not a flow's id."""
    return Path(given).suffix.lower() in SUFFIXES or "/" in given or given == "-"


def read_recipe(given: str) -> Any:
    """The flow in a JSON or YAML file; ``-`` reads JSON or YAML from standard input.

    Raises:
        CommandFailed: the file is missing, or holds neither.
    """
    try:
        with click.open_file(given, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise CommandFailed(f"there is no recipe file {given}", exit_code=EXIT_NOT_FOUND) from None
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{given} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    if Path(given).suffix.lower() == ".json":
        return _read_json(given, text)
    return _read_yaml(given, text)


def with_assignments(recipe: Any, assignments: Sequence[str]) -> Any:
    """The recipe with values set on top, such as ``vi-model.hyperparameters.epochs=5``.

    The first name is a field of the flow, or a block, which is added when it is not there yet. A value is read as JSON
    where it is JSON, and is text otherwise.

    Raises:
        CommandFailed: an assignment is malformed, or leads through something that is no object.
    """
    if not assignments:
        return recipe
    if not isinstance(recipe, dict):
        raise CommandFailed("the recipe is no object, so --set has nothing to set a value in")
    recipe = copy.deepcopy(recipe)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.split(".")
        if not equals or not all(names):
            raise CommandFailed(
                f"--set {assignment!r} is not PATH=VALUE, as in vi-model.hyperparameters.epochs=5", exit_code=EXIT_USAGE
            )
        _assign(recipe, names, _value(text, assignment), assignment)
    return recipe


def flow_for(client: "vi.Client", given: str | None, assignments: Sequence[str]) -> Any:
    """What to hand to ``client.runs.create``: the id as it is, or the recipe with everything set."""
    if given is not None and not names_file(given) and not assignments:
        return given
    return with_assignments(recipe_for(client, given), assignments)


def recipe_for(client: "vi.Client", given: str | None) -> Any:
    """The recipe behind a file name or a flow id; the empty one, which is complete, when nothing is given."""
    if given is None:
        return EMPTY_RECIPE
    if names_file(given):
        return read_recipe(given)
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
    """Parse JSON strictly; raises ValueError where it is none, CommandFailed where it would lose something."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CommandFailed(f"{name} has the key {twice!r} twice in one object; remove one of them")
        return document

    return json.loads(text, object_pairs_hook=unique, parse_float=lambda digits: _float(digits, name=name))


def _float(digits: str, *, name: str) -> float:
    number = float(digits)
    if number == 0 and re.search("[1-9]", re.split("[eE]", digits)[0]):
        raise CommandFailed(f"{name} has the number {digits}, which is too small for a 64-bit float; write 0, or more")
    return number


def _read_yaml(name: str, text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError as error:
        raise CommandFailed("reading YAML needs the package pyyaml; install it, or give the recipe as .json") from error

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                where = self.peek_event().start_mark.line + 1
                raise CommandFailed(f"{name} uses an alias in line {where}; write the value out there")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            document = super().construct_mapping(node, deep=deep)
            if len(document) < len(node.value):
                keys = [self.construct_object(key, deep=True) for key, _ in node.value]
                number, twice = next((n, key) for n, key in enumerate(keys) if key in keys[:n])
                line = node.value[number][0].start_mark.line + 1
                raise CommandFailed(f"{name} has the key {twice!r} twice, again in line {line}; remove one of them")
            return document

        def construct_yaml_float(self, node: Any) -> float:
            digits = self.construct_scalar(node).replace("_", "").lower()
            is_word = digits.endswith(("inf", "nan"))
            return super().construct_yaml_float(node) if is_word else _float(digits, name=name)

    PlainLoader.add_constructor("tag:yaml.org,2002:float", PlainLoader.construct_yaml_float)
    # A date in a recipe is text, as it is in JSON.
    PlainLoader.yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("timestamp", "int", "float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # YAML 1.1 reads 2e-4 as text because it has no dot, 010 as eight and 1:30 as ninety.
    for tag, pattern in (("int", YAML_INTEGER), ("float", YAML_FLOAT)):
        PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - derived from the safe loader
    except RecursionError:
        raise CommandFailed(f"{name} is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for a tag such as !!int before what is no number
        raise CommandFailed(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def _value(text: str, assignment: str) -> Any:
    try:
        return _parse_json(text, name=f"--set {assignment!r}")
    except ValueError:
        return text
    except RecursionError:
        raise CommandFailed("the value of a --set is nested too deeply", exit_code=EXIT_USAGE) from None


def _assign(recipe: dict[str, Any], names: list[str], value: Any, assignment: str) -> None:
    first, *rest = names
    if first in TOP_LEVEL:
        place: Any = recipe
        rest = names
    else:
        place = _settings_of_block(recipe, first)
    if not rest:
        raise CommandFailed(
            f"--set {assignment!r} names the block {first} and no setting in it; write {first}.SETTING=VALUE",
            exit_code=EXIT_USAGE,
        )
    for name in rest[:-1]:
        if not isinstance(place, dict):
            break
        place = place.setdefault(name, {})
    if not isinstance(place, dict):
        raise CommandFailed(f"--set {assignment!r} leads through a value that is no object")
    place[rest[-1]] = value


def _settings_of_block(recipe: dict[str, Any], name: str) -> Any:
    blocks = recipe.setdefault("blocks", [])
    for block in blocks if isinstance(blocks, list) else []:
        if isinstance(block, dict) and block.get("block") == name:
            return block.setdefault("settings", {})
    if not isinstance(blocks, list):
        return None
    settings: dict[str, Any] = {}
    blocks.append({"block": name, "settings": settings, "style": {}})
    return settings
