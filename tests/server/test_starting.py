"""A server that cannot start reports one line with cause and fix, an exit status, no secret."""

import asyncio
import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runyard.security.key_format import new_key
from runyard.server.clock import AsyncSystemClock
from runyard.server.http.app import open_services
from runyard.server.opening import check_versions
from runyard.settings import Settings
from runyard.starting import EXIT_CANNOT_START, EXIT_NOT_NOW, CannotStart
from tests.support.certificates import make_authority, make_certificate

NOBODY = 65534
PASSWORD = "correct-horse-battery"
# One interpreter that has imported the server, and a fork of it for each case: a real process,
# started at once.
FORKING = """
import json, os, signal, sys, traceback
from runyard.controller import main as controller
from runyard.server import process as server
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        code = 70
        try:
            os.dup2(os.open(order["stderr"], os.O_WRONLY | os.O_CREAT, 0o666), 2)
            os.environ.update(order["environ"])
            signal.alarm(60)
            if order["uid"]:
                os.setgid(order["uid"])
                os.setuid(order["uid"])
            sys.argv = ["test"]
            code = {"server": server, "controller": controller}[order["what"]].main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

Break = Callable[[Path], dict[str, str] | None]


@dataclass(frozen=True)
class Case:
    """Return what to break in a used data folder, the variables, and the expected report."""

    breaks: Break
    words: tuple[str, ...]
    status: int = EXIT_CANNOT_START
    uid: int = 0
    what: str = "server"
    is_new: bool = False  # the data folder is not made beforehand
    marks: tuple[Any, ...] = field(default=())


def variables(**values: str) -> Break:
    return lambda folder: {f"RUNYARD_{name.upper()}": value for name, value in values.items()}


def written(name: str, content: bytes) -> Break:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


def done(*steps: Callable[[Path], object]) -> Break:
    def do(folder: Path) -> None:
        for step in steps:
            step(folder)

    return do


def sql(statement: str) -> Break:
    def execute(folder: Path) -> None:
        connection = sqlite3.connect(folder / "server.db")
        with connection:
            connection.execute(statement)
        connection.close()

    return execute


def without_page(table: str) -> Break:
    """Overwrite the page that a table begins with."""

    def overwrite(folder: Path) -> None:
        connection = sqlite3.connect(folder / "server.db")
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.close()
        with open(folder / "server.db", "r+b") as file:
            file.seek((page - 1) * page_bytes)
            file.write(b"\xa5" * page_bytes)

    return overwrite


def a_folder(name: str) -> Break:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


def a_file_for_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def halved(folder: Path) -> None:
    path = folder / "server.db"
    os.truncate(path, path.stat().st_size // 2)


def emptied(folder: Path) -> None:
    os.truncate(folder / "server.db", 0)
    (folder / "blobs" / "org-1").mkdir(parents=True)


def key_of_another(folder: Path) -> None:
    (folder / "secrets" / "controller.json").write_text(
        json.dumps({"endpoint": "", "key": new_key()})
    )


def older_with_other_secrets(folder: Path) -> None:
    """Create a store from before peppers were recorded, whose key files have another pepper."""
    sql("DELETE FROM meta WHERE key = 'pepper'")(folder)
    (folder / "secrets" / "pepper").write_text(secrets.token_hex(32))


def passfile(folder: Path) -> dict[str, str]:
    path = folder / "pgpass"
    path.write_text(f"*:*:*:*:{PASSWORD}")
    path.chmod(0o600)
    return {"RUNYARD_DATABASE_URL": f"postgresql+psycopg://me@127.0.0.1:1/x?passfile={path}"}


def tls(*, key_of: str = "server", days: int = 2) -> Break:
    """Set a certificate of this many days, and the key of a certificate of this name."""

    def change(folder: Path) -> dict[str, str]:
        authority = make_authority(folder)
        make_certificate(folder, "other", authority=authority)
        pair = make_certificate(folder, authority=authority, days=days)
        key = folder / f"{key_of}.key"
        return {"RUNYARD_TLS_CERT": str(pair.certificate), "RUNYARD_TLS_KEY": str(key)}

    return change


def plain_endpoint(folder: Path) -> None:
    path = folder / "secrets/controller.json"
    document = json.loads(path.read_text()) | {"endpoint": "http://192.0.2.1:7878/"}
    path.write_text(json.dumps(document))


def refused_by_file(path: str) -> tuple[str, ...]:
    return (path, "try: put back a copy of the folder")


CASES = {
    "newer schema": Case(
        sql("UPDATE alembic_version SET version_num = '9999'"),
        ("9999", "newer", "start the Runyard"),
    ),
    "database: no database": Case(
        written("server.db", b"nonsense" * 2000), ("server.db", "damaged", "try: put back")
    ),
    "database: half a header": Case(
        written("server.db", b"SQLite format 3\0"), ("server.db", "damaged")
    ),
    "database: truncated": Case(halved, ("server.db", "damaged", "try: put back")),
    "database: empty over data": Case(emptied, ("server.db is empty", "blobs", "try: put back")),
    "database: page of facts": Case(without_page("meta"), ("damaged",)),
    "database: page of keys": Case(without_page("keys"), ("damaged",)),
    "database: page of organizations": Case(without_page("organizations"), ("damaged",)),
    "database: page of the version": Case(without_page("alembic_version"), ("damaged",)),
    "database: a folder": Case(a_folder("server.db"), ("server.db", "Is a directory", "try:")),
    "data folder: a file": Case(a_file_for_the_folder, ("data", "try: move that file away")),
    "data folder: not ours": Case(
        variables(), ("data", "Permission denied", "--data-dir"), uid=NOBODY
    ),
    "data folder: parent not ours": Case(
        variables(), ("data", "Permission denied", "--data-dir"), uid=NOBODY, is_new=True
    ),
    "pepper: empty": Case(written("secrets/pepper", b""), refused_by_file("secrets/pepper")),
    "pepper: garbage": Case(
        written("secrets/pepper", b"\xff\xfenot hex"), refused_by_file("secrets/pepper")
    ),
    "pepper: short": Case(written("secrets/pepper", b"abcd"), refused_by_file("secrets/pepper")),
    "pepper: missing": Case(
        lambda folder: (folder / "secrets/pepper").unlink(),
        ("secrets/pepper is missing", "try: put back"),
    ),
    "pepper: a folder": Case(a_folder("secrets/pepper"), ("secrets/pepper", "try:")),
    "pepper: readable by others": Case(
        lambda folder: (folder / "secrets/pepper").chmod(0o644),
        ("can be read by others", "chmod 600"),
    ),
    "pepper: of another": Case(
        written("secrets/pepper", secrets.token_hex(32).encode()),
        ("do not belong to this database", "try: put back"),
    ),
    "pepper: of another, older store": Case(
        older_with_other_secrets, ("do not belong to this database",)
    ),
    "secrets: all lost": Case(
        lambda folder: shutil.rmtree(folder / "secrets"), ("pepper is missing",)
    ),
    "signing keys: empty": Case(
        written("secrets/signing.json", b""), refused_by_file("signing.json")
    ),
    "signing keys: garbage": Case(
        written("secrets/signing.json", b"{]"), refused_by_file("signing.json")
    ),
    "signing keys: a list": Case(
        written("secrets/signing.json", b"[1]"), refused_by_file("signing.json")
    ),
    "signing keys: none current": Case(
        written("secrets/signing.json", b'{"current": "2", "keys": {}}'),
        refused_by_file("signing.json"),
    ),
    "signing keys: readable by others": Case(
        lambda folder: (folder / "secrets/signing.json").chmod(0o640),
        ("can be read by others", "chmod 600"),
    ),
    "credentials: garbage": Case(
        written("credentials.json", b"{"), ("credentials.json is damaged", "try:")
    ),
    "credentials: empty": Case(written("credentials.json", b""), ("credentials.json is damaged",)),
    "machine key: garbage": Case(
        written("secrets/controller.json", b"\0"), ("controller.json is damaged",)
    ),
    "machine key: none": Case(
        written("secrets/controller.json", b"{}"), ("controller.json holds no key",)
    ),
    "machine key: of another": Case(
        key_of_another, ("controller.json holds no key of this database", "try:")
    ),
    "port: a word": Case(variables(port="http"), ("RUNYARD_PORT", "'http'", "int")),
    "port: too large": Case(variables(port="99999"), ("99999",)),
    "slots: a word": Case(variables(slots="many"), ("RUNYARD_SLOTS", "'many'")),
    "log level: unknown": Case(
        variables(log_level="loud"), ("RUNYARD_LOG_LEVEL", "'loud'", "try: RUNYARD_LOG_LEVEL=info")
    ),
    "host: unknown": Case(
        variables(host="no.such.host.invalid", insecure_bind="1"),
        ("no.such.host.invalid", "--host"),
    ),
    "host: no name": Case(
        variables(host="." * 70, insecure_bind="1"), ("cannot listen on", "--host")
    ),
    "host: beyond loopback": Case(
        variables(host="192.0.2.1"), ("192.0.2.1", "RUNYARD_INSECURE_BIND")
    ),
    "host: of another machine": Case(
        variables(host="192.0.2.1", insecure_bind="1"), ("192.0.2.1", "--host")
    ),
    "tls: a certificate alone": Case(
        variables(tls_cert="/none.crt"), ("TLS_CERT is '/none.crt'", "TLS_KEY is not set", "try:")
    ),
    "tls: no such file": Case(
        variables(tls_cert="/none.crt", tls_key="/none.key"),
        ("cannot read /none.crt", "No such file", "try:"),
    ),
    "tls: the key of another": Case(
        tls(key_of="other"), ("other.key is not the private key", "server.crt", "try:")
    ),
    "tls: expired": Case(tls(days=-1), ("server.crt expired on", "try: renew it")),
    "database address: another kind": Case(
        variables(database_url="mysql://x"), ("RUNYARD_DATABASE_URL", "mysql")
    ),
    "database address: no address": Case(
        variables(database_url="postgresql+psycopg://me@h:no/x"), ("RUNYARD_DATABASE_URL", "try:")
    ),
    "database address: a password": Case(
        variables(database_url=f"postgresql+psycopg://me:{PASSWORD}@h/x"),
        ("RUNYARD_DATABASE_URL", "passfile"),
    ),
    "PostgreSQL: refused": Case(
        passfile, ("'x' at 127.0.0.1:1", "try: start PostgreSQL"), status=EXIT_NOT_NOW
    ),
    "PostgreSQL: no such host": Case(
        variables(database_url="postgresql+psycopg://me@no.such.host.invalid/x"),
        ("no.such.host.invalid", "try: start PostgreSQL"),
        status=EXIT_NOT_NOW,
    ),
    "controller: data folder not ours": Case(
        variables(), ("Permission denied", "try:"), what="controller", uid=NOBODY
    ),
    "controller: machine folder a file": Case(
        done(lambda folder: (folder / "machine").write_text("")),
        ("machine", "try:"),
        what="controller",
    ),
    "controller: slots a word": Case(
        variables(slots="many"), ("RUNYARD_SLOTS", "'many'"), what="controller"
    ),
    "controller: plain HTTP to another machine": Case(
        plain_endpoint,
        ("http://192.0.2.1:7878/ is plain HTTP", "try:", "RUNYARD_INSECURE=1"),
        what="controller",
    ),
    "controller: log level unknown": Case(
        variables(log_level="loud"), ("try: RUNYARD_LOG_LEVEL=info",), what="controller"
    ),
}


class Processes:
    """Runs servers and controllers as separate processes."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")
            },
        )

    def run(
        self, folder: Path, environ: dict[str, str], *, what: str = "server", uid: int = 0
    ) -> tuple[int, str]:
        """Return the exit status of a process over a data folder, and its output."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        with tempfile.NamedTemporaryFile("r") as output:
            environ = {"RUNYARD_DATA_DIR": str(folder), "RUNYARD_PORT": "0", **environ}
            order = {"what": what, "uid": uid, "environ": environ, "stderr": output.name}
            print(json.dumps(order), file=self._parent.stdin, flush=True)
            status = int(self._parent.stdout.readline())
            return status, output.read()

    def close(self) -> None:
        with self._parent:
            pass  # closes its input, which ends it, and waits


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    running = Processes()
    yield running
    running.close()


@pytest.fixture(scope="module")
def used_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder that a server has used."""
    folder = tmp_path_factory.mktemp("used") / "data"

    async def serve() -> None:
        async with open_services(Settings(data_dir=folder), AsyncSystemClock(), run_ticker=False):
            pass

    asyncio.run(serve())
    return folder


@pytest.fixture
def folder(used_folder: Path) -> Iterator[Path]:
    """Return a copy of it at a path that any user may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(shutil.copytree(used_folder, Path(place) / "data"))


def secrets_of(folder: Path) -> list[str]:
    """Return every secret of a data folder, and the password that some cases use."""
    signing = json.loads((folder / "secrets/signing.json").read_text())["keys"].values()
    keys = [json.loads((folder / "secrets/controller.json").read_text())["key"]]
    keys.append(json.loads((folder / "credentials.json").read_text())["secret_key"])
    return [
        PASSWORD,
        (folder / "secrets/pepper").read_text(),
        *signing,
        *keys,
        *(key[23:60] for key in keys),
    ]


@pytest.mark.parametrize("name", CASES)
def test_what_prevents_a_start_is_one_line_with_cause_and_fix(
    name: str, folder: Path, used_folder: Path, processes: Processes
) -> None:
    case = CASES[name]
    if case.uid and os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    known = secrets_of(used_folder)
    environ = case.breaks(folder) or {}
    if case.is_new:
        folder = Path("/opt/runyard-data")
    status, printed = processes.run(folder, environ, what=case.what, uid=case.uid)
    assert printed.count("\n") == 1, printed
    assert "Traceback" not in printed
    assert status == case.status, printed
    for words in case.words:
        assert words in printed
    assert not [secret for secret in known if secret in printed]


def test_a_failed_start_changes_nothing_that_would_prevent_the_fix(
    folder: Path, processes: Processes
) -> None:
    pepper = folder / "secrets" / "pepper"
    right = pepper.read_text()
    pepper.unlink()
    assert processes.run(folder, {})[0] == EXIT_CANNOT_START
    assert not pepper.exists()
    pepper.write_text(right)
    pepper.chmod(0o600)
    status, printed = processes.run(
        folder, {"RUNYARD_HOST": "192.0.2.1", "RUNYARD_INSECURE_BIND": "1"}
    )
    assert (status, "192.0.2.1" in printed) == (EXIT_CANNOT_START, True)

    async def serve() -> None:
        async with open_services(Settings(data_dir=folder), AsyncSystemClock(), run_ticker=False):
            pass

    asyncio.run(serve())


def test_an_older_store_adopts_the_secrets_that_its_keys_were_made_with(folder: Path) -> None:
    sql("DELETE FROM meta WHERE key = 'pepper'")(folder)

    async def noted() -> bool:
        async with open_services(Settings(data_dir=folder), AsyncSystemClock(), run_ticker=False):
            connection = sqlite3.connect(folder / "server.db")
            found = connection.execute("SELECT value FROM meta WHERE key = 'pepper'").fetchone()
            connection.close()
            return found is not None

    assert asyncio.run(noted())


def test_a_missing_machine_key_is_created_again_and_accepted(folder: Path) -> None:
    path = folder / "secrets" / "controller.json"
    before = json.loads(path.read_text())["key"]
    path.unlink()

    async def role() -> str:
        async with open_services(
            Settings(data_dir=folder), AsyncSystemClock(), run_ticker=False
        ) as services:
            made = json.loads(path.read_text())["key"]
            assert made != before
            key = services.keyring.find(made, now_ms=services.clock.now_ms())
            assert key is not None
            return key.role

    assert asyncio.run(role()) == "controller"


def test_a_port_in_use_is_one_line(folder: Path, processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, printed = processes.run(folder, {"RUNYARD_PORT": port})
    assert status == EXIT_CANNOT_START
    assert f"127.0.0.1:{port}" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("/postgres?", "/not-there?"), 'database "not-there" does not exist'),
        (("postgres@", "nobody-here@"), 'role "nobody-here" does not exist'),
    ],
)
def test_a_postgresql_that_refuses_is_final_and_one_line(
    change: tuple[str, str], words: str, folder: Path, processes: Processes, postgresql: Any
) -> None:
    url = str(postgresql.new_database())
    name = url.partition("@/")[2].partition("?")[0]
    url = url.replace(f"/{name}?", "/postgres?").replace(*change)
    status, printed = processes.run(folder, {"RUNYARD_DATABASE_URL": url})
    assert (status, printed.count("\n")) == (EXIT_CANNOT_START, 1)
    assert words in printed
    assert "try: check user, passfile and database name" in printed


def test_the_secrets_of_another_data_folder_do_not_open_a_postgresql_database(
    folder: Path, tmp_path: Path, processes: Processes, postgresql: Any
) -> None:
    url = str(postgresql.new_database())

    async def serve() -> None:
        async with open_services(
            Settings(data_dir=tmp_path / "first", database_url=url),
            AsyncSystemClock(),
            run_ticker=False,
        ):
            pass

    asyncio.run(serve())
    status, printed = processes.run(folder, {"RUNYARD_DATABASE_URL": url})
    assert (status, printed.count("\n")) == (EXIT_CANNOT_START, 1)
    assert "do not belong to this database" in printed


def test_a_full_disk_is_one_line_and_temporary(tmp_path: Path, processes: Processes) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("needs root, to mount a small disk")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False
    ).returncode:
        pytest.skip("may not mount here")
    try:
        status, printed = processes.run(disk / "data", {})
    finally:
        subprocess.run([shutil.which("umount") or "umount", disk], check=True)
    assert (status, printed.count("\n")) == (EXIT_NOT_NOW, 1), printed
    assert "try: free space" in printed


@pytest.mark.parametrize(("python", "sqlite"), [((3, 10), (3, 46)), ((3, 13), (3, 34))])
def test_a_python_or_sqlite_that_is_too_old_is_refused(
    python: tuple[int, int], sqlite: tuple[int, int]
) -> None:
    with pytest.raises(CannotStart, match=r"is too old: at least 3\.\d+ is required"):
        check_versions(python, sqlite)
    check_versions((3, 11), (3, 35))


def test_a_server_that_cannot_be_announced_ends_with_the_reason(
    folder: Path, processes: Processes
) -> None:
    (folder / "server.json").mkdir()
    status, printed = processes.run(folder, {})
    assert status == EXIT_CANNOT_START
    assert "Traceback" not in printed
    assert "server.json" in printed.splitlines()[-1]
