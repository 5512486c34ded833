"""``runyard up``: start an instance and watch over it until somebody ends it.

The key itself is printed once, on the first start, and only to a terminal: what goes into a file or a pipe says where
the key lies and never what it is.

A terminal that closes (SIGHUP) ends the instance as a whole, as Ctrl-C and SIGTERM do, unless the process was started
with SIGHUP ignored (``nohup``). With ``--detach`` the same command runs in a session of its own, with no terminal.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from runyard.cli.connection import data_dir_option
from runyard.cli.ending import Ending
from runyard.cli.failures import EXIT_USAGE, CommandFailed
from runyard.cli.instance import (
    Instance,
    holding,
    live_endpoint,
    log_path,
    longest_end_s,
    read_processes,
    rotate_log,
)
from runyard.rundir import read_json
from runyard.settings import Settings, build_environment, read_settings

LOOK_EVERY_S = 0.5


@click.command()
@click.option("--host", help="Address to listen on. [default: RUNYARD_HOST, else 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one. [default: RUNYARD_PORT, else 7878]"
)
@data_dir_option
@click.option("--insecure-bind", is_flag=True, default=None, help="Listen beyond this machine without TLS.")
@click.option(
    "--detach", is_flag=True, help="Run in the background; return when it serves, or with the reason why not."
)
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when standard input does.")
def up(
    host: str | None,
    port: int | None,
    data_dir: Path | None,
    insecure_bind: bool | None,
    detach: bool,
    end_with_stdin: bool,
) -> None:
    """Start server and controller here, and watch over them.

    The first start makes an organisation and a key, and writes credentials.json (mode 0600) into the data folder.
    Ctrl-C, SIGTERM and a closed terminal end both: runs are saved and resume at the next start. A second Ctrl-C does
    not wait. With --detach it outlives the terminal, and `runyard down` ends it. Logs are in the data folder, under
    logs.
    """
    settings = read_settings(host=host, port=port, data_dir=data_dir, insecure_bind=insecure_bind)
    check_bind(settings)
    is_first_start = not settings.credentials_file.exists()
    if detach:
        endpoint = _start_detached(settings)
        shows_key = is_first_start and sys.stdout.isatty()
        say("\n".join([*introduction(settings, endpoint, shows_key=shows_key), "`runyard down` ends it."]))
        return
    with holding(settings), _ends_asked_for(end_with_stdin) as ends:
        instance = Instance(settings, say=say, is_unwanted=lambda: ends.asked(0))
        instance.end_orphans()
        ending, started = Ending(settings), None
        try:
            started = instance.start()
            if started is not None:
                shows_key = is_first_start and sys.stdout.isatty()
                say("\n".join([*introduction(settings, started, shows_key=shows_key), "Ctrl-C ends it."]))
            while not ends.asked(LOOK_EVERY_S):
                instance.watch()
            say("Ending: the controller first, then the server.")
        finally:
            ends.on_repeat = instance.kill
            if started is not None:
                ending.begin()
            instance.end(before_server_ends=ending.finish)
            for line in ending.lines():
                say(line)
    say("Ended.")


def say(text: str) -> None:
    """Print a line; a terminal or a pipe that is gone must not keep an instance from ending."""
    try:
        click.echo(text)
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)  # else what is still buffered fails again at the exit
        os.close(nothing)


def _start_detached(settings: Settings) -> str:
    """Start ``runyard up`` in a session of its own; returns the endpoint once it serves.

    Raises:
        CommandFailed: it ended instead; the message is its own.
    """
    with holding(settings):
        pass  # raises when an instance runs here already
    log = log_path(settings, "up")
    rotate_log(log, settings.server_log_mib << 20)
    with open(log, "ab") as output:
        begins_at = output.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runyard.cli", "up"],
            env={**os.environ, **build_environment(settings)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            noted = read_processes(settings)
            is_ours = "up" in noted and noted["up"].pid == process.pid and "controller" in noted
            if is_ours and (endpoint := live_endpoint(settings)) is not None:
                return endpoint
            time.sleep(0.05)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(longest_end_s(settings))
        raise
    with open(log, "rb") as output:
        output.seek(begins_at)
        words = output.read().decode(errors="replace").strip()
    raise CommandFailed(
        words.rpartition("Error: ")[2] or "the instance ended at once", exit_code=process.returncode or 1
    )


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
    return lines


class _Ends:
    """Whether somebody wants us to end: a signal, or the end of standard input where we watch that."""

    def __init__(self, wakes: socket.socket, stdin: int | None):
        self._wakes = wakes
        self._stdin = stdin
        self.signals = 0
        self.on_repeat: Callable[[], None] = lambda: None

    def on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        self.signals += 1
        # SIGTERM and SIGHUP come together at the end of a session, and `runyard down` may be repeated.
        if self.signals > 1 and number == signal.SIGINT:
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


def _leave_terminal() -> None:
    """Let go of a terminal that is closing: writing to it would fail."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            if os.isatty(descriptor):
                os.dup2(nothing, descriptor)
    os.close(nothing)


@contextmanager
def _ends_asked_for(watches_stdin: bool) -> Iterator[_Ends]:
    """Catch SIGINT, SIGTERM, SIGHUP and the death of children, so that waiting ends at once for each of them."""
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
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # whoever ignores it (nohup) wants us to survive it
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, ends.on_signal)
    try:
        yield ends
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakes.close()
        wake_from.close()
