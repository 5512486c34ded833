"""Recipes as they are given on the command line: a JSON or YAML file, or a flow id, and single values set on top.

YAML is read with a safe loader that knows no anchors: a recipe has no use for them, and a few lines of nested aliases
grow to gigabytes when written out.
"""

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
    recipe = json.loads(json.dumps(recipe))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.split(".")
        if not equals or not all(names):
            raise CommandFailed(
                f"--set {assignment!r} is not PATH=VALUE, as in vi-model.hyperparameters.epochs=5", exit_code=EXIT_USAGE
            )
        _assign(recipe, names, _value(text), assignment)
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
        return json.loads(text)
    except ValueError as error:
        raise CommandFailed(f"{name} is not JSON: {error}") from error


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

    # A date in a recipe is text, as it is in JSON.
    PlainLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # YAML 1.1 reads 2e-4 as text because it has no dot; here it is the number everybody means.
    PlainLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    try:
        return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - derived from the safe loader
    except yaml.YAMLError as error:
        raise CommandFailed(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


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
