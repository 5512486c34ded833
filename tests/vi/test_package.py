"""Public names of ``vi``, and the modules that its import loads."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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
