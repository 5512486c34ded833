"""``runyard up``: start an instance and watch over it until somebody ends it.

The key itself is printed once, on the first start, and only to a terminal: what goes into a file or a pipe says where
the key lies and never what it is.
"""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from runyard.cli.connection import data_dir_option
from runyard.cli.failures import EXIT_USAGE, CommandFailed
from runyard.cli.instance import Instance, holding
from runyard.rundir import read_json
from runyard.settings import Settings, read_settings

LOOK_EVERY_S = 0.5


@click.command()
@click.option("--host", help="Address to listen on. [default: RUNYARD_HOST, else 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. [default: RUNYARD_PORT, else 7878]"
)
@data_dir_option
@click.option("--insecure-bind", is_flag=True, default=None, help="Listen beyond this machine without TLS.")
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when standard input does.")
def up(
    host: str | None, port: int | None, data_dir: Path | None, insecure_bind: bool | None, end_with_stdin: bool
) -> None:
    """Start server and controller here, and watch over them.

    The first start makes an organisation and a key, and writes credentials.json (mode 0600) into the data folder.
    Ctrl-C ends both; a second Ctrl-C does not wait. Logs are in the data folder, under logs.
    """
    settings = read_settings(host=host, port=port, data_dir=data_dir, insecure_bind=insecure_bind)
    check_bind(settings)
    with holding(settings), _ends_asked_for(end_with_stdin) as ends:
        is_first_start = not settings.credentials_file.exists()
        instance = Instance(settings, say=click.echo, is_unwanted=lambda: ends.asked(0))
        instance.end_orphans()
        try:
            endpoint = instance.start()
            if endpoint is not None:
                shows_key = is_first_start and sys.stdout.isatty()
                click.echo("\n".join(introduction(settings, endpoint, shows_key=shows_key)))
            while not ends.asked(LOOK_EVERY_S):
                instance.watch()
            click.echo("Ending: the controller first, then the server.")
        finally:
            ends.on_repeat = instance.kill
            instance.end()
    click.echo("Ended.")


def check_bind(settings: Settings) -> None:
    """Refuse to listen beyond this machine unless told to.

    Raises:
        CommandFailed: the host is no loopback address and nobody said that this is meant.
    """
    is_loopback = settings.host in ("localhost", "::1") or settings.host.startswith("127.")
    if is_loopback or settings.insecure_bind:
        return
    raise CommandFailed(
        f"listening on {settings.host} would send keys and data over the network in clear text; put a TLS proxy in "
        "front and keep --host 127.0.0.1, or, on a network you trust, add --insecure-bind",
        exit_code=EXIT_USAGE,
    )


def introduction(settings: Settings, endpoint: str, *, shows_key: bool) -> list[str]:
    """What a newcomer needs to know about an instance that has just come up."""
    file = settings.credentials_file
    known = read_json(file) or {}
    read_key = f'python3 -c \'import json; print(json.load(open("{file}"))["secret_key"])\''
    lines = [
        "Runyard is up.",
        "",
        f"  endpoint      {endpoint}",
        f"  organisation  {known.get('organization_id', 'unknown')}",
        f"  credentials   {file}",
        f"  logs          {settings.logs_dir}",
        "",
        "Use it from Python:",
        "",
        "  import vi",
        f'  client = vi.Client(config_file="{file}")',
        "",
        "or from a shell:",
        "",
        f"  export DATATURE_VI_API_ENDPOINT={endpoint}",
        f"  export DATATURE_VI_ORGANIZATION_ID={known.get('organization_id', 'unknown')}",
        f'  export DATATURE_VI_SECRET_KEY="$({read_key})"',
        "",
    ]
    if shows_key:
        lines += [f"The key, shown this once: {known.get('secret_key', 'unknown')}", ""]
    return [*lines, "Ctrl-C ends it."]


class _Ends:
    """Whether somebody wants us to end: a signal, or the end of standard input where we watch that."""

    def __init__(self, wakes: socket.socket, stdin: int | None):
        self._wakes = wakes
        self._stdin = stdin
        self.signals = 0
        self.on_repeat: Callable[[], None] = lambda: None

    def on_signal(self, *_: object) -> None:
        self.signals += 1
        if self.signals > 1:
            self.on_repeat()

    def asked(self, timeout_s: float) -> bool:
        """Wait until somebody asks, a child ends, or time is up."""
        watched: list[socket.socket | int] = [self._wakes] if self._stdin is None else [self._wakes, self._stdin]
        ready, _, _ = select.select(watched, [], [], 0 if self.signals else timeout_s)
        if self._wakes in ready:
            self._wakes.recv(4096)
        if self._stdin in ready and self._stdin is not None and not os.read(self._stdin, 4096):
            self._stdin = None
            self.signals += 1  # whoever held the other end of standard input is gone, which asks as a signal does
        return self.signals > 0


@contextmanager
def _ends_asked_for(watches_stdin: bool) -> Iterator[_Ends]:
    """Catch SIGINT, SIGTERM and the death of children, so that waiting ends at once for each of them."""
    wakes, wake_from = socket.socketpair()
    wakes.setblocking(False)
    wake_from.setblocking(False)
    ends = _Ends(wakes, sys.stdin.fileno() if watches_stdin else None)
    signal.set_wakeup_fd(wake_from.fileno(), warn_on_full_buffer=False)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, ends.on_signal),
        signal.SIGTERM: signal.signal(signal.SIGTERM, ends.on_signal),
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
    }
    try:
        yield ends
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakes.close()
        wake_from.close()
