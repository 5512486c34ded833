"""Public names of ``vi``, and the modules that its import loads."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vi

ROOT = Path(__file__).resolve().parents[2]

# Changing this list changes the public surface: say so in the changelog.
PUBLIC = [
    "AsyncClient",
    "Client",
    "PaginationError",
    "ViAuthenticationError",
    "ViConfigurationError",
    "ViConflictError",
    "ViDownloadError",
    "ViError",
    "ViErrorCode",
    "ViFileTooLargeError",
    "ViImportFailedError",
    "ViInvalidFileFormatError",
    "ViInvalidParameterError",
    "ViNetworkError",
    "ViNotFoundError",
    "ViOperationError",
    "ViPermissionError",
    "ViRateLimitError",
    "ViRunFailedError",
    "ViRunVanishedError",
    "ViServerError",
    "ViTimeoutError",
    "ViUploadError",
    "ViValidationError",
    "__version__",
]


def loaded_by(code: str) -> set[str]:
    """Return the names of the modules that a new interpreter has loaded after this code."""
    script = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_list_of_public_names_is_complete() -> None:
    assert vi.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(vi))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(vi, name) is getattr(vi, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="ViNonsense"):
        vi.ViNonsense  # noqa: B018


def test_the_seeds_import_paths_work() -> None:
    code = """
from vi import Client, AsyncClient, ViNotFoundError, ViError
from vi.client import Client as C
from vi.api.types import PaginationParams
from vi.api.pagination import PaginatedResponse, PaginationError
from vi.api.responses import ConditionKind, DeletedResource
from vi.api.resources.runs.responses import Run, RunSpec, RunStatus
from vi.api.resources.flows.responses import Flow, FlowSpec
assert C is Client
"""
    loaded_by(code)


def test_import_vi_loads_nothing_heavy() -> None:
    loaded = loaded_by("import vi")
    assert {name for name in loaded if name.split(".")[0] == "vi"} == {"vi"}
    assert not loaded & {"httpx2", "httpcore2", "msgspec", "rich", "asyncio", "ssl", "json"}


def test_catching_an_error_loads_nothing_heavy() -> None:
    assert not loaded_by("from vi import ViNotFoundError") & {
        "httpx2",
        "msgspec",
        "rich",
        "asyncio",
        "ssl",
    }


def test_the_client_loads_neither_rich_nor_an_event_loop() -> None:
    loaded = loaded_by("import vi; vi.Client('dtvi_' + 'k' * 98, 'lab')")
    assert not loaded & {"rich", "asyncio", "tarfile", "vi._client._async", "vi._http._async"}


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_creating_a_client_loads_no_http_library_and_no_resource(kind: str) -> None:
    loaded = loaded_by(f"import vi; vi.{kind}('dtvi_' + 'k' * 98, 'lab')")
    assert not loaded & {"httpx2", "httpcore2", "rich", "urllib.request", "email", "tarfile"}
    assert not {name for name in loaded if name.startswith("vi.api")}


def test_a_resource_loads_neither_the_others_nor_an_http_library() -> None:
    loaded = loaded_by("import vi; vi.Client('dtvi_' + 'k' * 98, 'lab').runs")
    assert "vi.api.resources.runs._sync" in loaded
    assert not loaded & {"httpx2", "rich", "asyncio", "tarfile", "zipfile"}
    resources = {name.split(".")[3] for name in loaded if name.startswith("vi.api.resources.")}
    assert not resources & {"assets", "annotations", "audit", "keys", "models"}


@pytest.mark.parametrize("kind", [vi.Client, vi.AsyncClient])
def test_every_resource_is_listed_by_dir_and_created_once(kind: Any) -> None:
    client = kind("dtvi_" + "k" * 98, "lab")
    names = [name for name in dir(client) if not name.startswith("_")]
    assert {"runs", "flows", "models", "datasets", "assets", "annotations"} <= set(names)
    assert {"training_projects", "keys", "audit"} <= set(names)
    for name in names:
        assert getattr(client, name) == getattr(client, name)


def test_wire_documents_load_no_http_stack() -> None:
    assert not loaded_by("import vi.api.resources.runs.responses") & {"httpx2", "rich", "asyncio"}


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert vi.__version__ == project["version"]


def test_synchronous_twins_have_not_drifted() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/unasync", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_synchronous_twin_waits() -> None:
    twins = [*ROOT.glob("src/vi/**/_sync.py"), *ROOT.glob("tests/vi/**/*_sync.py")]
    assert len(twins) > 10
    for twin in twins:
        code = re.sub(r'""".*?"""', "", twin.read_text("utf-8"), flags=re.DOTALL)
        assert not re.search(r"\b(async|await|asyncio)\b|Async[A-Z]", code), twin
