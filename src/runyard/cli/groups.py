"""Groups of commands: aliases of verbs, and suggestions for unknown words."""

import click

# A verb that people type, and the verbs that it may stand for.
ALIASES = {"ls": ("list",), "rm": ("delete", "remove")}


class NounGroup(click.Group):
    """Commands on one kind of resource; ``ls`` and ``rm`` are aliases of list and delete."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        for verb in ALIASES.get(cmd_name, ()):
            found = found or super().get_command(ctx, verb)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise_unknown_command(self, ctx, args[0])
        return super().resolve_command(ctx, args)


def raise_unknown_command(group: click.Group, ctx: click.Context, name: str) -> None:
    """Reject the name of a command that does not exist.

    Raises:
        click.UsageError: Always, with the closest name and the valid ones.
    """
    from difflib import get_close_matches

    names = group.list_commands(ctx)
    closest = get_close_matches(name, [*names, *ALIASES], n=1)
    hint = f" Did you mean {closest[0]!r}?" if closest else ""
    ctx.fail(f"No such command {name!r}.{hint}\nCommands: {', '.join(names)}")


def describe_unexpected(error: Exception) -> str:
    """Return the message for an exception that is a bug; its traceback is kept in a file."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="runyard-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    return (
        f"unexpected {type(error).__name__}: {error}\n"
        f"This is a bug of Runyard; the traceback is in {file.name}. try: --debug prints it; "
        "please report it with the output of `runyard env`"
    )
