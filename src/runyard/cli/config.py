"""``runyard config``: the settings as the processes of an instance read them."""

from pathlib import Path
from typing import NamedTuple

import click

from runyard.cli.connection import data_dir_option, list_connection_sources
from runyard.cli.groups import NounGroup
from runyard.cli.output import json_option, print_json, print_table

CONNECTION_HELP = {
    "endpoint": "address of the server that commands use",
    "organization_id": "organization that commands act for",
    "secret_key": "key that commands use",
}


class ShownSetting(NamedTuple):
    """Setting with its value, the source of the value, and its meaning."""

    name: str
    value: object
    source: str
    help: str


@click.group(cls=NounGroup)
def config() -> None:
    """Show every setting, its value and its source."""


@config.command("show")
@click.option(
    "--origin",
    is_flag=True,
    help="Show only what is not a default, and the server, organization and key of commands.",
)
@data_dir_option
@json_option
def show_config(origin: bool, data_dir: Path | None, as_json: bool) -> None:
    """Show every setting, its value and its source.

    Each setting can be set by an environment variable RUNYARD_<NAME>; options of `runyard up` take
    precedence. The key is never printed.
    """
    settings = list_settings(data_dir)
    if origin:
        settings = [setting for setting in settings if setting.source != "default"]
        settings += [
            ShownSetting(name, value, source, CONNECTION_HELP[name])
            for name, value, source in list_connection_sources(data_dir)
        ]
    if as_json:
        print_json({"settings": [setting._asdict() for setting in settings]})
    else:
        rows = [(each.name, each.value, each.source, each.help) for each in settings]
        print_table(("SETTING", "VALUE", "FROM", "MEANING"), rows)


def list_settings(data_dir: Path | None) -> list[ShownSetting]:
    """Return every setting in order of definition."""
    from dataclasses import fields

    from runyard.settings import Settings, get_source, read_settings

    settings = read_settings(data_dir=data_dir)
    shown = []
    for item in fields(Settings):
        value = getattr(settings, item.name)
        source = (
            "--data-dir"
            if item.name == "data_dir" and data_dir is not None
            else get_source(item.name)
        )
        shown.append(
            ShownSetting(
                item.name,
                str(value) if isinstance(value, Path) else value,
                source,
                item.metadata["help"],
            )
        )
    return shown
