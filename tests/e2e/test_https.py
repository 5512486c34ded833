"""``runyard up`` with TLS: every process of the machine works over it, also with a new certificate.

The certificate does not name the loopback address by which they connect.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vi
from runyard.cli.instance.instance import live_endpoint
from runyard.settings import read_settings
from tests.server.processes import running_server
from tests.support.certificates import KeyPair, make_authority, make_certificate
from tests.support.instance import LONG_RECIPE
from tests.support.waiting import eventually

TIMEOUT_S = 120
SHORT_RECIPE: dict[str, Any] = {
    "name": "Short training",
    "blocks": [
        {"block": "vi-dataset", "settings": {"maxSamples": 16}},
        {
            "block": "vi-model",
            "settings": {
                "hyperparameters": {"maxSteps": 4, "batchSize": 4},
                "validation": {"maxSamples": 4},
            },
        },
    ],
}
pytestmark = pytest.mark.e2e


@contextmanager
def running(data_dir: Path, pair: KeyPair) -> Iterator[str]:
    """``runyard up`` with a certificate; yield what it has printed."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")},
        "RUNYARD_DATA_DIR": str(data_dir),
        "RUNYARD_THREADS": "1",
        "RUNYARD_GRACE_S": "5",
        "RUNYARD_HOST": "0.0.0.0",  # noqa: S104 - no permission is needed with TLS
    }
    command = [sys.executable, "-P", "-m", "runyard.cli", "up", "--port", "0", "--end-with-stdin"]
    command += ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    log = data_dir.with_suffix(".log")
    with open(log, "wb") as output:
        up = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    with up:
        try:
            eventually(
                lambda: up.poll() is not None or b"Ctrl-C stops it" in log.read_bytes(),
                timeout_s=TIMEOUT_S,
                what="runyard up is up",
            )
            assert up.poll() is None, log.read_text()
            yield log.read_text()
        finally:
            up.communicate(timeout=TIMEOUT_S)  # closes its input


def runyard(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "runyard.cli", *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def restart_server(data_dir: Path) -> None:
    """End the server, which ``runyard up`` then starts again."""
    settings = read_settings({}, data_dir=data_dir)
    before = json.loads(settings.server_file.read_text())["pid"]
    os.kill(before, signal.SIGTERM)

    def is_another() -> bool:
        document = settings.server_file.exists() and json.loads(settings.server_file.read_text())
        return bool(document and document["pid"] != before and live_endpoint(settings))

    eventually(is_another, timeout_s=TIMEOUT_S, what="the server was started again")


def wait_for_condition(client: vi.Client, run_id: str, condition: str) -> None:
    eventually(
        lambda: client.runs.get(run_id).condition == condition,
        timeout_s=TIMEOUT_S,
        what=f"the run is {condition}",
    )


def test_runs_train_over_tls_and_survive_a_renewed_certificate(tmp_path: Path) -> None:
    data_dir, name = tmp_path / "data", "DNS:train.example"
    pair = make_certificate(tmp_path, names=name, authority=make_authority(tmp_path))
    with running(data_dir, pair) as printed:
        assert f"The certificate {pair.certificate} expires on 20" in printed
        assert "  pages         https://train.example:" in printed
        assert f"export RUNYARD_CA={data_dir / 'certificate.pem'}" in printed
        status = runyard(data_dir, "status", "--json")
        assert (status.returncode, json.loads(status.stdout)["state"]) == (0, "up")
        link = runyard(data_dir, "open", "--print").stdout
        assert link.startswith("https://train.example:"), link

        config_file = data_dir / "credentials.json"
        with vi.Client(config_file=config_file) as client:
            run = client.runs.create(SHORT_RECIPE)
            ended = client.runs.wait(run.run_id, timeout=TIMEOUT_S, show_progress=False)
            assert ended.condition == "Succeeded"
            model = client.models.download(
                run.run_id, save_dir=tmp_path / "model", show_progress=False
            )
            assert Path(model.model_path).is_dir()
            # Forked from the warm parent, while the first one was started without it.
            eventually(
                lambda: (data_dir / "machine/warm.sock").exists(),
                timeout_s=TIMEOUT_S,
                what="the warm parent is ready",
            )
            long_run = client.runs.create(LONG_RECIPE).run_id
            wait_for_condition(client, long_run, "Running")

        make_certificate(tmp_path, names=name, authority=make_authority(tmp_path, "renewed"))
        restart_server(data_dir)
        assert (data_dir / "certificate.pem").read_text() == pair.certificate.read_text()
        with vi.Client(config_file=config_file) as client:
            client.runs.kill(long_run)
            wait_for_condition(client, long_run, "Cancelled")
            assert len(client.runs.get(long_run).status.attempts) == 1


def test_a_machine_of_its_own_trains_over_tls_with_the_authority(tmp_path: Path) -> None:
    """A controller with another data folder, as on another machine."""
    authority = make_authority(tmp_path)
    pair = make_certificate(tmp_path, authority=authority, names="DNS:localhost")
    certificate = {"tls_cert": pair.certificate, "tls_key": pair.key}
    machine_dir = tmp_path / "machine"
    with running_server(tmp_path / "data", **certificate) as server:
        key = json.loads((tmp_path / "data/secrets/controller.json").read_text())["key"]
        endpoint = f"https://localhost:{server.port}/"
        (machine_dir / "secrets").mkdir(parents=True)
        (machine_dir / "secrets/controller.json").write_text(
            json.dumps({"endpoint": endpoint, "key": key, "ca": str(authority.certificate)})
        )
        kept = {name: text for name, text in os.environ.items() if not name.startswith("RUNYARD_")}
        machine = {"RUNYARD_DATA_DIR": str(machine_dir), "RUNYARD_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, "-m", "runyard.controller"],
            env={**kept, **machine, "RUNYARD_WARM": "0"},
            stderr=subprocess.DEVNULL,
        ) as controller:
            try:
                with vi.Client(config_file=tmp_path / "data/credentials.json") as client:
                    run = client.runs.create(SHORT_RECIPE)
                    ended = client.runs.wait(run.run_id, timeout=TIMEOUT_S, show_progress=False)
                    assert ended.condition == "Succeeded"
            finally:
                controller.terminate()
