"""The SDK of Runyard: train vision-language models through ``client.runs``.

Importing this package loads next to nothing; each public name is resolved on first use, because scripts and command
lines that only ask for ``--help`` should not pay for an HTTP stack.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vi.client import AsyncClient, Client
    from vi.errors import (
        PaginationError,
        ViAuthenticationError,
        ViConfigurationError,
        ViConflictError,
        ViDownloadError,
        ViError,
        ViErrorCode,
        ViFileTooLargeError,
        ViImportFailedError,
        ViInvalidFileFormatError,
        ViInvalidParameterError,
        ViNetworkError,
        ViNotFoundError,
        ViOperationError,
        ViPermissionError,
        ViRateLimitError,
        ViRunFailedError,
        ViRunVanishedError,
        ViServerError,
        ViTimeoutError,
        ViUploadError,
        ViValidationError,
    )

__version__ = "0.1.0"

__all__ = [
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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vi' has no attribute {name!r}")
    from importlib import import_module

    module = import_module("vi.client" if name.endswith("Client") else "vi.errors")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
