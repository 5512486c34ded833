"""docs/cli.md documents every command and every exit code."""

import re
from pathlib import Path

import click
import pytest

from runyard.cli import failures
from runyard.cli.main import cli

PAGE_FOLDER = Path(__file__).parents[2] / "docs"
PAGE = (PAGE_FOLDER / "cli.md").read_text()


def commands() -> list[str]:
    """Return every command that is not a group, as it is typed."""
    context = click.Context(cli)
    found = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        nested = command.commands if isinstance(command, click.Group) else {}
        found += [f"runyard {name} {below}" for below in nested] or [f"runyard {name}"]
    return found


@pytest.mark.parametrize("command", commands())
def test_the_page_has_a_line_for_the_command(command: str) -> None:
    assert f"| `{command}" in PAGE


def test_the_page_has_every_exit_code() -> None:
    for name, code in vars(failures).items():
        if name.startswith("EXIT_"):
            assert f"\n| {code} |" in PAGE, name


def test_the_readme_names_only_commands_that_exist() -> None:
    readme = (PAGE_FOLDER.parent / "README.md").read_text()
    named = set(
        re.findall(r"runyard ((?:runs|flows|models|config) [a-z]+|up|demo|doctor)\b", readme)
    )
    assert named
    assert {f"runyard {name}" for name in named} <= set(commands())


def test_the_links_of_the_readme_resolve() -> None:
    readme = PAGE_FOLDER.parent / "README.md"
    links = re.findall(r"\]\(([^)#]+)\)", readme.read_text())
    assert [link for link in links if not (readme.parent / link).exists()] == []
