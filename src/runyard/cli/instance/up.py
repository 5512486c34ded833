"""``runyard up``: start an instance and supervise it until a stop is requested.

The key is printed only once, on the first start, and only to a terminal. Output to a file or a pipe
names the file with the key instead.

A closed terminal (SIGHUP), Ctrl-C and SIGTERM stop the instance, except that SIGHUP is ignored
under ``nohup``. With ``--detach`` the same command runs in its own session without a terminal.
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
from runyard.cli.failures import CommandFailed
from runyard.cli.instance.instance import (
    Instance,
    live_endpoint,
    lock_data_dir,
    log_path,
    max_shutdown_s,
    name_endpoint,
    read_processes,
    rotate_log,
)
from runyard.cli.instance.shutdown_report import ShutdownReport
from runyard.rundir import read_json
from runyard.security.transport import check_bind
from runyard.settings import Settings, build_environment, read_settings

POLL_INTERVAL_S = 0.5


@click.command()
@click.option("--host", help="Address to listen on. [default: RUNYARD_HOST, else 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port; 0 selects a free one. [default: RUNYARD_PORT, else 7878]",
)
@data_dir_option
@click.option(
    "--insecure-bind",
    is_flag=True,
    default=None,
    help="Allow other addresses than loopback without TLS.",
)
@click.option(
    "--tls-cert",
    metavar="FILE",
    help="Certificate to serve https:// with, PEM, with its chain. [default: RUNYARD_TLS_CERT]",
)
@click.option(
    "--tls-key",
    metavar="FILE",
    help="Private key of the certificate, PEM, without a password. [default: RUNYARD_TLS_KEY]",
)
@click.option(
    "--detach",
    is_flag=True,
    help="Run in the background; return when the server is ready or has failed.",
)
@click.option(
    "--end-with-stdin", is_flag=True, hidden=True, help="Stop at the end of standard input."
)
def up(
    host: str | None,
    port: int | None,
    data_dir: Path | None,
    insecure_bind: bool | None,
    tls_cert: str | None,
    tls_key: str | None,
    detach: bool,
    end_with_stdin: bool,
) -> None:
    """Start and supervise server and controller on this machine.

    The first start creates an organization and a key, and writes credentials.json (mode 0600) to
    the data folder. Ctrl-C, SIGTERM and a closed terminal stop both: runs are saved and resume at
    the next start. A second Ctrl-C does not wait. With --detach the instance outlives the terminal,
    and `runyard down` stops it. Logs are in the folder logs of the data folder.
    """
    settings = read_settings(
        host=host,
        port=port,
        data_dir=data_dir,
        insecure_bind=insecure_bind,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    check_bind(settings)
    if settings.tls_cert:
        _check_certificate(settings)
    is_first_start = not settings.credentials_file.exists()
    if detach:
        endpoint = _start_detached(settings)
        shows_key = is_first_start and sys.stdout.isatty()
        say(
            "\n".join(
                [
                    *format_introduction(settings, endpoint, shows_key=shows_key),
                    "`runyard down` stops it.",
                ]
            )
        )
        _say_link(settings)
        return
    with lock_data_dir(settings), _catch_stop_requests(end_with_stdin) as stops:
        instance = Instance(settings, say=say, is_stop_requested=lambda: stops.wait(0))
        instance.stop_orphans()
        report, started = ShutdownReport(settings), None
        try:
            started = instance.start()
            if started is not None:
                shows_key = is_first_start and sys.stdout.isatty()
                say(
                    "\n".join(
                        [
                            *format_introduction(settings, started, shows_key=shows_key),
                            "Ctrl-C stops it.",
                        ]
                    )
                )
                _say_link(settings)
            while not stops.wait(POLL_INTERVAL_S):
                instance.watch()
            say("Stopping the controller, then the server.")
        finally:
            stops.on_repeat = instance.kill
            if started is not None:
                report.record_running()
            instance.stop(before_server_stops=report.record_outcomes)
            for line in report.lines():
                say(line)
    say("Stopped.")


def say(text: str) -> None:
    """Print a line; a closed terminal or pipe must not prevent the shutdown of an instance."""
    try:
        click.echo(text)
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)  # otherwise flushing the buffer fails again at exit
        os.close(nothing)


def _say_link(settings: Settings) -> None:
    """Print a link that signs a browser in, to a terminal only: it is worth as much as the key.

    It comes after everything else, since it takes the SDK, which the start does not.
    """
    if not sys.stdout.isatty():
        return
    import vi
    from runyard.cli.resources.sessions import create_link

    try:
        with vi.Client(config_file=settings.credentials_file, max_retries=0, timeout=5) as client:
            link = create_link(client)
    except vi.ViError as error:
        say(f"No link to the pages could be made ({error.message}); try: runyard open")
        return
    say(f"\nOpen the pages (this link works once, within ten minutes):\n\n  {link.url}\n")


def _check_certificate(settings: Settings) -> None:
    """Check the certificate before anything is created; warn if it expires soon.

    Raises:
        SettingError: Clients would not accept it.
    """
    from runyard.security.tls import EXPIRES_SOON_DAYS, describe_expiry, load_server_certificate

    certificate = load_server_certificate(settings)
    if certificate is not None and certificate.days_left < EXPIRES_SOON_DAYS:
        say(f"The certificate {settings.tls_cert} {describe_expiry(certificate)}.")


def _start_detached(settings: Settings) -> str:
    """Start ``runyard up`` in its own session and return the endpoint once the server is ready.

    Raises:
        CommandFailed: The process exited; the message is its own.
    """
    with lock_data_dir(settings):
        pass  # raises if an instance is running already
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
            recorded = read_processes(settings)
            is_started = (
                "up" in recorded and recorded["up"].pid == process.pid and "controller" in recorded
            )
            if is_started and (endpoint := live_endpoint(settings)) is not None:
                return endpoint
            time.sleep(0.05)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(max_shutdown_s(settings))
        raise
    with open(log, "rb") as output:
        output.seek(begins_at)
        text = output.read().decode(errors="replace").strip()
    raise CommandFailed(
        text.rpartition("Error: ")[2] or "the instance exited immediately",
        exit_code=process.returncode or 1,
    )


def format_introduction(settings: Settings, endpoint: str, *, shows_key: bool) -> list[str]:
    """Return the text printed after a start: endpoint, credentials, and how to connect."""
    file = settings.credentials_file
    endpoint = name_endpoint(settings, endpoint)
    ca = [f"  export RUNYARD_CA={settings.certificate_file}"] if settings.tls_cert else []
    known = read_json(file) or {}
    read_key = f'python3 -c \'import json; print(json.load(open("{file}"))["secret_key"])\''
    lines = [
        "Runyard is up.",
        "",
        f"  endpoint      {endpoint}",
        f"  pages         {endpoint}ui  (`runyard open` signs a browser in)",
        f"  organization  {known.get('organization_id', 'unknown')}",
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
        *ca,
        f"  export DATATURE_VI_ORGANIZATION_ID={known.get('organization_id', 'unknown')}",
        f'  export DATATURE_VI_SECRET_KEY="$({read_key})"',
        "",
    ]
    if shows_key:
        lines += [f"Key (shown only once): {known.get('secret_key', 'unknown')}", ""]
    return lines


class _StopRequests:
    """Stop requests: signals, and the end of standard input if it is watched."""

    def __init__(self, wakes: socket.socket, stdin: int | None):
        self._wakes = wakes
        self._stdin = stdin
        self.signals = 0
        self.on_repeat: Callable[[], None] = lambda: None

    def on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            _detach_from_terminal()
        self.signals += 1
        # Only SIGINT counts as a repeat: SIGTERM and SIGHUP arrive together at the end of a
        # session.
        if self.signals > 1 and number == signal.SIGINT:
            self.on_repeat()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a stop request, the exit of a child, or the timeout.

        Return True if a stop is requested.
        """
        watched: list[socket.socket | int] = (
            [self._wakes] if self._stdin is None else [self._wakes, self._stdin]
        )
        ready, _, _ = select.select(watched, [], [], 0 if self.signals else timeout_s)
        if self._wakes in ready:
            self._wakes.recv(4096)
        if self._stdin in ready and self._stdin is not None and not os.read(self._stdin, 4096):
            self._stdin = None
            self.signals += 1  # the process at the other end of standard input has exited
        return self.signals > 0


def _detach_from_terminal() -> None:
    """Redirect standard streams from a closing terminal, to which writing would fail."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            if os.isatty(descriptor):
                os.dup2(nothing, descriptor)
    os.close(nothing)


@contextmanager
def _catch_stop_requests(watches_stdin: bool) -> Iterator[_StopRequests]:
    """Handle SIGINT, SIGTERM, SIGHUP and SIGCHLD, so that each of them wakes up ``wait``."""
    wakes, wake_from = socket.socketpair()
    wakes.setblocking(False)
    wake_from.setblocking(False)
    stops = _StopRequests(wakes, sys.stdin.fileno() if watches_stdin else None)
    signal.set_wakeup_fd(wake_from.fileno(), warn_on_full_buffer=False)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, stops.on_signal),
        signal.SIGTERM: signal.signal(signal.SIGTERM, stops.on_signal),
        signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None),
    }
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, stops.on_signal)
    try:
        yield stops
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakes.close()
        wake_from.close()
