"""``runyard completion``: shell completion of commands, options and their values."""

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  runyard completion bash > ~/.local/share/bash-completion/completions/runyard
    zsh:   eval "$(runyard completion zsh)"      (in ~/.zshrc)
    fish:  runyard completion fish > ~/.config/fish/completions/runyard.fish
    """
    from click.shell_completion import get_completion_class

    from runyard.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.BadParameter(f"{shell} is not supported, expected: one of {', '.join(SHELLS)}")
    click.echo(kind(cli, {}, "runyard", "_RUNYARD_COMPLETE").source())
