"""``runyard config``: the settings as the processes of an instance would read them."""

from pathlib import Path
from typing import NamedTuple

import click

from runyard.cli.connection import data_dir_option
from runyard.cli.output import json_option, print_json, print_table


class Shown(NamedTuple):
    """One setting, its value, and where that value comes from."""

    name: str
    value: object
    source: str
    help: str


@click.group()
def config() -> None:
    """Show every setting, its value, and where it comes from."""


@config.command("show")
@data_dir_option
@json_option
def show_config(data_dir: Path | None, as_json: bool) -> None:
    """Show every setting, its value, and where it comes from.

    Each can be given as a variable RUNYARD_<NAME>; an option of `runyard up` wins over the variable.
    """
    settings = shown_settings(data_dir)
    if as_json:
        print_json({"settings": [setting._asdict() for setting in settings]})
    else:
        rows = [(each.name, each.value, each.source, each.help) for each in settings]
        print_table(("SETTING", "VALUE", "FROM", "MEANING"), rows)


def shown_settings(data_dir: Path | None) -> list[Shown]:
    """Every setting, in the order in which they are defined."""
    from dataclasses import fields

    from runyard.settings import Settings, get_source, read_settings

    settings = read_settings(data_dir=data_dir)
    shown = []
    for item in fields(Settings):
        value = getattr(settings, item.name)
        source = "--data-dir" if item.name == "data_dir" and data_dir is not None else get_source(item.name)
        shown.append(Shown(item.name, str(value) if isinstance(value, Path) else value, source, item.metadata["help"]))
    return shown
