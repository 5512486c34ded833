"""Real process trees that resist their end: they are killed, and the survivors are counted.

The default suite ends three; ``make stubborn`` ends two hundred and prints how long the slowest
took.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runyard import processes

pytestmark = pytest.mark.skipif(not processes.IS_LINUX, reason="the proofs need /proc")

TREES = int(os.environ.get("RUNYARD_STUBBORN_TREES", "3"))
AT_ONCE = 3
GRACE_S = 0.3
BEYOND_GRACE_S = 2.0

TREE = """
import os, signal, subprocess, sys, time
def train(folder):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = ["/bin/sh", "-c", "trap '' TERM HUP INT; while :; do sleep 600; done"]
    subprocess.Popen(sleep)
    subprocess.Popen(["/usr/bin/env", "-i", "/usr/bin/setsid", "-f", *sleep])
    stopped = subprocess.Popen(sleep)
    os.kill(stopped.pid, signal.SIGSTOP)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(600)
        os._exit(0)
    if os.fork() == 0:  # one that keeps forking
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
            time.sleep(0.2)
    time.sleep(0.3)
    (folder / "ready").write_text("")
    while True:
        time.sleep(600)
"""


def kill_one(
    number: int, tmp_path: Path, new_server: Callable[[], Any], place_attempt: Any, script: str
) -> tuple[float, int]:
    """Return the seconds from the kill to the report that no process is left, and the number of
    survivors.
    """
    server = new_server()
    folder = place_attempt(tmp_path, attempt=1, run=f"tree-{number}")
    room = {"RUNYARD_ATTEMPT": "-" * 200, "RUNYARD_SUPERVISOR": "-" * 200}
    # A separate file, because another thread may be reading its own
    program = tmp_path / f"tree-{number}.py"
    program.write_text(TREE)
    with (tmp_path / f"supervisor-{number}.log").open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-c", script, str(folder), str(program), server.endpoint],
            env={**os.environ, **room},
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        server.wait_for((folder / "ready").exists, 60)
        before = processes.list_descendants(supervisor.pid)
        assert len(before) >= 5
        with server.changed:
            server.renewal = {"action": "kill", "lease_s": 1.2, "grace_s": GRACE_S, "epoch": "e1"}
        killed_at_s = time.monotonic()
        server.wait_for(lambda: server.reports, 60)
        took_s = time.monotonic() - killed_at_s
        assert server.reports[0]["group_empty"] is True
        mark = json.loads((folder / "process.json").read_text())["mark"]
        left = [identity for identity in before if processes.check_liveness(identity) != "dead"]
        left += [
            identity for identity, _ in processes.find_marked(processes.ATTEMPT_MARK, mark.__eq__)
        ]
        assert supervisor.wait(20) == 0
        return took_s, len(left)
    finally:
        supervisor.kill()
        supervisor.wait()
        server.close()


def test_no_tree_survives_its_kill(
    tmp_path: Path, harness: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_one(number: int) -> tuple[float, int]:
        return kill_one(number, tmp_path, harness.new_server, harness.place_attempt, harness.script)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(run_one, range(TREES)))
    took_s = sorted(took for took, _ in outcomes)
    survivors = sum(left for _, left in outcomes)
    if TREES > 3:
        p99_s = took_s[min(len(took_s) - 1, round(0.99 * len(took_s)) - 1)]
        within = sum(took <= GRACE_S + BEYOND_GRACE_S for took in took_s)
        with capsys.disabled():
            print(
                f"\n{TREES} trees, {AT_ONCE} at once, grace {GRACE_S} s: {survivors} survivors; "
                f"from kill to proven empty median {took_s[len(took_s) // 2]:.2f} s, p99 "
                f"{p99_s:.2f} s, longest {took_s[-1]:.2f} s; {within} of {TREES} within grace + "
                f"{BEYOND_GRACE_S:.0f} s"
            )
    assert survivors == 0
