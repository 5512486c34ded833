"""Attempt folders, short flows, and folders with miniature models for the trainer's tests."""

import copy
import hashlib
import io
import json
import multiprocessing
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.trainer import miniatures


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread, as the tiny model does; more would wait for each other on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def digits() -> Iterator[None]:
    """Make the dataset of digits once for all trainings of this process that have the same one."""
    from runyard.trainer.data.datasets import BUILT_IN

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILT_IN, "digits", lru_cache(maxsize=4)(BUILT_IN["digits"]))
        yield


class Forked:
    """Run the trainer in a fork, as the warm parent does, which saves the imports.

    ``work`` may change modules; the process exits with the code that it returns.
    """

    def __init__(self, work: Callable[[], int], output: Path) -> None:
        def begin() -> None:
            log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # The test runner's own variables point elsewhere.
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            raise SystemExit(work())

        with warnings.catch_warnings():
            # Python warns about locks of other threads; those of the test runner hold none that a
            # trainer needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = multiprocessing.get_context("fork").Process(target=begin)
            self._process.start()

    def poll(self) -> int | None:
        """Return the exit code, or the signal as a negative number; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int | None:
        self._process.join(timeout_s)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def end(self) -> None:
        self._process.kill()
        self._process.join()


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Return a function: ``fork(work)``, or ``fork(work, output=path)`` with a file for its output.

    The process ends with the test.
    """
    started: list[Forked] = []

    def begin(work: Callable[[], int], *, output: Path = tmp_path / "output") -> Forked:
        started.append(Forked(work, output))
        return started[-1]

    yield begin
    for process in started:
        process.end()


@pytest.fixture(scope="session")
def write_attempt(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write an attempt folder with ``run.json``, and return it. Settings are given by block name.

    To save time, nothing is evaluated before the first step unless the settings say so.
    Weights may come from ``models`` below its root, and from other folders of fixtures.
    """
    made_elsewhere = tmp_path_factory.getbasetemp()

    def write(
        root: Path,
        blocks: dict[str, dict[str, Any]] | None = None,
        *,
        run: str = "run",
        attempt: int = 1,
        settings: dict[str, Any] | None = None,
        resume: Path | None = None,
        weights: dict[str, str] | None = None,
        cache_bytes: int | None = None,
    ) -> Path:
        folder = root / run / "attempts" / str(attempt)
        folder.mkdir(parents=True)
        blocks = copy.deepcopy(blocks or {})
        validation = blocks.setdefault("vi-model", {}).setdefault("validation", {})
        if isinstance(validation, dict):
            validation.setdefault("beforeTraining", False)
        flow = {
            "name": "test",
            "schema": "v1",
            "tolerations": {},
            "settings": settings or {},
            "blocks": [
                {"block": name, "settings": value, "style": {}} for name, value in blocks.items()
            ],
        }
        document = {"kind": "Run", "workspaceId": "org", "runId": run, "spec": {"flow": flow}}
        config = {"run": document, "attempt": attempt, "threads": 1, "dataDir": str(root)}
        config["modelFolders"] = [str(root / "models"), str(made_elsewhere)]
        if cache_bytes is not None:
            config["cacheBytes"] = cache_bytes
        (folder / "run.json").write_text(json.dumps(config))
        if weights is not None:
            (folder / "weights.json").write_text(json.dumps(weights))
        if resume is not None:
            (folder / "resume.json").write_text(json.dumps({"folder": str(resume)}))
        return folder

    return write


@pytest.fixture
def make_attempt(write_attempt: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return the same function for the test's own folder."""
    return partial(write_attempt, tmp_path)


def read_events(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the events of one name, in order, without a line that is still being written."""
    whole, _, _ = (folder / "events.jsonl").read_text().rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if line["ev"] == name]


@pytest.fixture(scope="session")
def events_of() -> Callable[[Path, str], list[dict[str, Any]]]:
    return read_events


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Return a small image, different for each number."""
    return make_png


def make_png(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2] = number % 256
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def read_png_size(data: bytes) -> tuple[int, int]:
    """Read width and height from the header, also of a truncated file; (1, 1) if it has none."""
    width, height = struct.unpack_from(">II", data, 16) if len(data) >= 24 else (1, 1)
    return width, height


@pytest.fixture
def make_version(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a version's folder, from images with records by filename, and
    optionally splits by filename.
    """
    return partial(write_version, tmp_path / "datasets" / "org")


def write_version(
    home: Path,
    images: dict[str, tuple[bytes, list[Any]]],
    splits: Mapping[str, Any] | None = None,
    *,
    claimed_sizes: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> Path:
    """Write a version; ``splits`` are the own splits of some of the images.

    ``claimed_sizes`` has the images whose records give another size.
    """
    from runyard.datasets.versions import (
        CONTENTS,
        MANIFEST,
        PACKS,
        ManifestWriter,
        VersionImage,
        encode_contents_line,
    )
    from runyard.rundir import COMPLETE

    folder = home / f"{len(list(home.glob('*'))):016x}"
    (folder / PACKS).mkdir(parents=True)
    pack = b"".join(data for data, _ in images.values())
    name, offset, lines = hashlib.sha256(pack).hexdigest(), 0, set()
    with open(folder / MANIFEST, "wb") as file:
        writer, places = ManifestWriter(file), {}
        for filename, (data, _) in images.items():
            places[filename] = (hashlib.sha256(data).hexdigest(), offset, len(data))
            offset += len(data)
        seen = set()
        for filename, (data, records) in sorted(images.items()):
            sha256, at, size = places[filename]
            width, height = claimed_sizes.get(filename) or read_png_size(data)
            writer.add(
                VersionImage(
                    filename=filename,
                    sha256=sha256,
                    size=len(data),
                    width=width,
                    height=height,
                    mime="image/png",
                    records=records,
                    split=(splits or {}).get(filename),
                )
            )
            if sha256 not in seen:
                seen.add(sha256)
                lines.add(encode_contents_line(sha256, name, at, size))
    (folder / CONTENTS).write_bytes(b"".join(sorted(lines)))
    (folder / PACKS / name).write_bytes(pack)
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    (folder / COMPLETE).write_text(json.dumps({"sizes": sizes}))
    return folder


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a model type to a folder with a miniature of it."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            model, processor = miniatures.make(model_type)
            made[model_type] = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(made[model_type])
            processor.save_pretrained(made[model_type])
        return made[model_type]

    return make
