"""Every block of code in the tutorials and how-to guides is executed as a reader would.

The same is done for other pages that have commands.
``support.howtos`` describes how. ``HOWTOS`` has what a reader of each page knows and the page does
not say: IDs, paths, and exit codes other than 0. Trainings are shortened to a few steps.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import ExifTags, Image

import vi
from runyard.processes import identify
from tests.support.howtos import (
    CONSOLE,
    PYTHON,
    REASONS,
    REPOSITORY,
    SHELL,
    HowTo,
    Reader,
    check_output,
    find_words,
    read_blocks,
    reading,
    split_commands,
    write_home,
)
from tests.test_examples import write_coco
from tests.trainer.miniatures import make


def shorten_to(steps: int) -> str:
    """Blocks of a training of so many steps, in a flow or in a program."""
    data = {"block": "vi-dataset", "settings": {"maxSamples": 48}}
    settings = {
        "hyperparameters": {"maxSteps": steps, "batchSize": 8},
        "validation": {"maxSamples": 8},
        "checkpoint": {"every": {"steps": 1000}},
    }
    return json.dumps([data, {"block": "vi-model", "settings": settings}])


class NoUploads(httpx2.HTTPTransport):
    """Loses every connection that would carry bytes of an import."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.startswith("/uploads/"):
            raise httpx2.ConnectError("cut", request=request)
        return super().handle_request(request)


def interrupt_import(reader: Reader) -> str:
    """The ID of an import of the shelves for which the server has received nothing."""
    dataset_id = reader.get_last_line("runyard datasets import shelves")
    names = ("SECRET_KEY", "ORGANIZATION_ID", "API_ENDPOINT")
    key, organization, endpoint = (reader.environ[f"DATATURE_VI_{name}"] for name in names)
    weak = NoUploads()
    with vi.Client(key, organization, endpoint=endpoint, transport=weak, max_retries=0) as client:
        with pytest.raises(vi.ViNetworkError):
            client.datasets.import_folder(
                reader.folder / "shelves", dataset_id=dataset_id, progress=False
            )
        import_id: str = client.datasets.imports.list(dataset_id).items[0].import_id
    weak.close()
    return import_id


def get_dataset(reader: Reader) -> str:
    return reader.get_last_line("runyard datasets import shelves")


def get_short_run(reader: Reader) -> str:
    return reader.environ["SHORT_RUN"]


def train_adapter(reader: Reader) -> str:
    """Train a low-rank adapter for ten steps; return the run."""
    names = ("SECRET_KEY", "ORGANIZATION_ID", "API_ENDPOINT")
    key, organization, endpoint = (reader.environ[f"DATATURE_VI_{name}"] for name in names)
    data, model = json.loads(shorten_to(10))
    model["settings"]["training"] = {"mode": "lora"}
    with vi.Client(key, organization, endpoint=endpoint) as client:
        run = client.runs.create({"name": "adapter", "blocks": [data, model]})
        return client.runs.wait(run.run_id, timeout=120, show_progress=False).run_id


def get_key(reader: Reader) -> str:
    [created] = [text for key, text in reader.printed.items() if "keys create" in key]
    return created.split()[1]


def get_endpoint(reader: Reader) -> str:
    credentials = json.loads(
        (Path(reader.environ["HOME"]) / ".runyard/credentials.json").read_text()
    )
    return str(credentials["endpoint"]).rstrip("/")


def get_token(reader: Reader) -> str:
    [printed] = [text for key, text in reader.printed.items() if "machines invite" in key]
    return printed.splitlines()[0].split()[-1]


# Starts the second machine on the same one, and waits until it has joined.
START_WORKER = (
    'start_worker() { runyard worker --data-dir worker --name gpu-3 "$@" & '
    "until runyard machines get gpu-3; do sleep 0.2; done; } >worker.log 2>&1"
)


def get_port(reader: Reader) -> str:
    document = json.loads((Path(reader.environ["HOME"]) / ".runyard/server.json").read_text())
    return str(urlsplit(document["endpoint"]).port)


BREAK_A_DATABASE = "mkdir -p broken && yes 'no database' | head -c 9000 > broken/server.db"
# Pages whose reader uses an instance that is up.
WITH_INSTANCE = {
    "docs/own-data.md": HowTo(
        fill={
            "DATASET": get_dataset,
            "k3v9c2m1x8qa": get_dataset,
            "IMPORT": interrupt_import,
        },
        exits={"runyard datasets check shelves": 1},
    ),
    "docs/sdk.md": HowTo(
        shorten={
            '"blocks": [],': f'"blocks": {shorten_to(10)},',
            'FlowSpec(name="digits")': f'FlowSpec(name="digits", blocks={shorten_to(5)})',
        }
    ),
    "docs/reproducing.md": HowTo(fill={"70177d37-c5e8-498f-b92b-3ded3695b691": get_short_run}),
    "docs/events.md": HowTo(),  # its blocks have a test of their own
    "docs/gpu.md": HowTo(),  # as are its commands
    "docs/tour.md": HowTo(),  # its commands are in tables, which test_docs.py checks
    "docs/exporting.md": HowTo(fill={"MODEL": get_short_run, "FOLDER": "exported"}),
    "docs/serve.md": HowTo(fill={"MODEL": train_adapter, "IMAGE": "shelves/images/001.png"}),
    "docs/cli.md": HowTo(
        fill={
            "70177d37-c5e8-498f-b92b-3ded3695b691": get_short_run,
            "--grace 30 --wait": "--grace 30 --wait --yes",  # the answer to the question
        }
    ),
}
# Pages whose reader starts one, or needs none.
BY_THEMSELVES = {
    "docs/deployment.md": HowTo(
        exits={BREAK_A_DATABASE: 8},
        staying=("runyard up",),
        shown_by={
            "Error: the server cannot start": f"{BREAK_A_DATABASE}; "
            'runyard up --data-dir "$PWD/broken"'
        },
    ),
    "docs/tls.md": HowTo(
        fill={"train.example": "localhost", "7878": get_port, "--host 0.0.0.0": "--host 127.0.0.1"},
        staying=("runyard up --host 127.0.0.1 --tls-cert server.crt --tls-key server.key",),
    ),
    "docs/queue.md": HowTo(),
    "CONTRIBUTING.md": HowTo(fill={"FOLDER ...": "src"}),
    "docs/machines.md": HowTo(
        first=("runyard up --detach", START_WORKER),
        fill={
            "runyard up --host 0.0.0.0 --tls-cert server.crt --tls-key server.key": "true",
            "https://train.example:7878": get_endpoint,
            "runyard worker": "start_worker",
            "ryjn_...": get_token,
        },
    ),
    "docs/security.md": HowTo(
        first=("runyard up --detach",),
        fill={"4fY0dZkPq3LmXw81": get_key, "/srv/runyard": "$HOME/.runyard"},
    ),
    "docs/storage.md": HowTo(
        first=("runyard up --detach",),
        fill={"restore": "restore --yes"},  # the answer to the question
    ),
    "README.md": HowTo(
        fill={"ID": lambda reader: reader.get_last_line(".venv/bin/runyard datasets import")},
        exits={".venv/bin/runyard datasets check": 1},
        staying=(".venv/bin/runyard up",),
        first=(".venv/bin/runyard up",),
        shown_by={"Starting a private instance": ".venv/bin/runyard demo"},
    ),
}
HOWTOS = {**WITH_INSTANCE, **BY_THEMSELVES}
# What `make test` follows; `make howtos` follows all of them, on every submission.
QUICK = {"docs/sdk.md", "docs/events.md", "docs/tour.md", "CONTRIBUTING.md"}


def select(pages: Iterable[str]) -> list[str]:
    """Return the pages that this run of the tests follows."""
    return [page for page in pages if page in QUICK or os.environ.get("RUNYARD_HOWTOS") == "1"]


def write_shelves(folder: Path) -> None:
    """A folder whose report is that of own-data.md.

    One image has an EXIF rotation, and six have a box outside of them.
    """
    write_coco(folder, count=12)
    labels = json.loads((folder / "instances.json").read_text())
    (folder / "instances.json").unlink()
    for number, image in enumerate(labels["images"][:6], 1000):
        outside = {"id": number, "image_id": image["id"], "bbox": [image["width"] + 9, 9, 9, 9]}
        labels["annotations"].append({**labels["annotations"][0], **outside})
    (folder / "labels.json").write_text(json.dumps(labels))
    rotated = folder / labels["images"][0]["file_name"]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.open(rotated).save(rotated, exif=exif)


def write_base_model(folder: Path) -> None:
    """A small model with random weights and a real model's files, which takes long prompts."""
    model, processor = make("smolvlm")
    model.config.text_config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def short_run(client: vi.Client, finished_run: Any) -> str:
    """A run of ten steps, which has ended."""
    run = client.runs.create({"name": "short", "blocks": json.loads(shorten_to(10))})
    return client.runs.wait(run.run_id, timeout=120, show_progress=False).run_id


@pytest.mark.parametrize("page", select(WITH_INSTANCE))
def test_a_reader_who_follows_the_page_succeeds(
    page: str, client: vi.Client, instance: Any, short_run: str, tmp_path: Path, end_run: Any
) -> None:
    before = {run.run_id for run in client.runs.list({"page_size": 1000}).items}
    environ = {**write_home(tmp_path), **instance.environ, "SHORT_RUN": short_run}
    write_shelves(tmp_path / "shelves")
    if page == "docs/own-data.md":
        write_base_model(tmp_path / "smolvlm")
        environ["RUNYARD_MODEL_FOLDERS"] = str(instance.data_dir / "models")
    (tmp_path / "shelf.yaml").write_text(f"blocks: {shorten_to(10)}")
    try:
        with reading(HOWTOS[page], environ, tmp_path) as reader:
            reader.follow(read_blocks(REPOSITORY / page))
    finally:
        for run in client.runs.list({"page_size": 1000}).items:
            if run.run_id not in before:
                end_run(client, run.run_id)
    assert reader.find_unused() == set()


@pytest.mark.e2e
@pytest.mark.parametrize("page", select(BY_THEMSELVES))
def test_a_reader_who_starts_alone_succeeds(page: str, tmp_path: Path) -> None:
    warm = "1" if page == "README.md" else "0"
    environ = {**write_home(tmp_path), "RUNYARD_PORT": "0", "RUNYARD_WARM": warm}
    write_shelves(tmp_path / "shelves")
    if page == "README.md":
        write_base_model(tmp_path / "smolvlm")
    copy_checkout(tmp_path)
    try:
        with reading(HOWTOS[page], environ, tmp_path) as reader:
            reader.follow(read_blocks(REPOSITORY / page))
    finally:
        subprocess.run([tmp_path / ".venv/bin/runyard", "down"], env=environ, check=True)
    assert reader.find_unused() == set()


def copy_checkout(folder: Path) -> None:
    """Copy what the commands of CONTRIBUTING.md read and write, with a part of the sources."""
    for name in ("docs", "scripts", "src/runyard/controller"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(REPOSITORY / name, folder)


def find_guides() -> set[str]:
    """Return the tutorials and how-to guides that the index lists."""
    index = REPOSITORY / "docs/index.md"
    guides = re.search(r"^## Tutorial$(.*?)^## Reference$", index.read_text(), re.S | re.M)
    assert guides is not None
    linked = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", guides[1], re.M)
    return {(index.parent / link).resolve().relative_to(REPOSITORY).as_posix() for link in linked}


def test_every_guide_of_the_index_and_every_page_with_commands_has_a_reader() -> None:
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
    with_code = {
        page.relative_to(REPOSITORY).as_posix()
        for page in pages
        if any(block.language in (SHELL, CONSOLE, PYTHON, "bash") for block in read_blocks(page))
    }
    assert find_guides() | with_code == set(HOWTOS)


@pytest.mark.parametrize("page", list(HOWTOS))
def test_each_block_of_a_guide_is_executed_or_says_why_not(page: str) -> None:
    for block in read_blocks(REPOSITORY / page):
        where = f"{page}, line {block.line}"
        is_shown = any(block.text.startswith(start) for start in HOWTOS[page].shown_by)
        if block.reason:
            assert block.reason in REASONS, where
        elif block.module:
            assert page in (REPOSITORY / block.module).read_text(), where
        else:
            assert not block.mark, where
            assert is_shown or block.language in (SHELL, CONSOLE, PYTHON), where


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_each_target_of_make_that_a_page_names_exists(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M)
    named = re.findall(
        r"\bmake ([a-z-]+)", "".join(block.text for block in read_blocks(REPOSITORY / page))
    )
    assert named
    assert set(named) <= set(targets)


def test_a_comment_before_a_block_says_why_it_is_not_executed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n<!-- not run: installs packages -->\n```sh\nmake\n```\n"
        "<!-- run by tests/test_x.py -->\n\n```text\nout\n```\n"
        "<!-- not run: installs packages -->\nText.\n```sh\na  # why\nb \\\n  c\n```\n"
    )
    first, second, third = read_blocks(page)
    assert (first.line, first.language, first.text) == (3, "sh", "make")
    assert [block.reason for block in (first, second, third)] == ["installs packages", "", ""]
    assert [block.module for block in (first, second, third)] == ["", "tests/test_x.py", ""]
    assert [shown.command for shown in split_commands(third)] == ["a", "b    c"]


def test_output_is_compared_by_its_words() -> None:
    printed = "Run 4f-1 has ended\nsteps  10 of 10  same\n"
    check_output("Run 70177d37 has ended\n\nsteps  600 of 600  same\n  ...\n", printed)
    with pytest.raises(AssertionError, match="differ"):
        check_output("steps  600 of 600  differ", printed)
    assert find_words("(the database /data/server.db, in 3 s):") == ["the", "database", "in", "s"]


def read_page(text: str, folder: Path, howto: HowTo) -> Reader:
    page = folder / "page.md"
    page.write_text(text)
    with reading(howto, write_home(folder), folder) as reader:
        reader.follow(read_blocks(page))
    return reader


def test_a_page_keeps_its_variables_and_names(tmp_path: Path) -> None:
    text = (
        "```sh\nexport A=NAME\n```\n```python\nb = 2\n```\n"
        "```console\n$ echo It is $A\nIt is rose\n```\n```python\nprint(b)\n```\n"
    )
    reader = read_page(text, tmp_path, HowTo(fill={"NAME": "rose"}, exits={"false": 1}))
    assert reader.printed == {
        "export A=rose": "",
        "line 4": "",
        "echo It is $A": "It is rose\n",
        "line 11": "2\n",
    }
    assert reader.find_unused() == {"false"}


def test_a_page_that_fails_leaves_nothing_running(tmp_path: Path, eventually: Any) -> None:
    staying = "echo Ctrl-C stops it.; sleep 600"
    text = f"```sh\n(echo $BASHPID >pid; {staying})\nfalse\n```\n"
    with pytest.raises(AssertionError, match="false exits"):
        read_page(text, tmp_path, HowTo(staying=(f"(echo $BASHPID >pid; {staying})",)))
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: identify(pid) is None, timeout_s=10, what="the command has ended")


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```sh\nfalse\n```\n", "false exits with 1"),
        ("```sh\nexit 3\n```\n", "ended its terminal"),
        ("```python\n1 / 0\n```\n", "line 1 fails"),
        ("```console\n$ echo a b\nb c\n```\n", "the page shows 'b c'"),
    ],
    ids=["command", "terminal", "program", "output"],
)
def test_a_block_that_does_not_do_what_the_page_says_is_named(
    block: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=said):
        read_page(block, tmp_path, HowTo())
