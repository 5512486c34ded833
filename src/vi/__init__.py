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
__distribution__ = "runyard"  # by this line a package vi is told from that of vi-sdk

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


def _warn_of_twin() -> None:
    """Say that vi-sdk lies beside this package: it has the same name, so one of the two has overwritten the other."""
    import os

    try:
        beside = os.listdir(os.path.dirname(__path__[0]))  # noqa: PTH120, PTH208 - pathlib would be loaded for it
    except OSError:
        return  # in an archive, where nothing can have been overwritten
    if any(name.startswith(("vi_sdk-", "vi-sdk-")) for name in beside):
        import warnings

        warnings.warn(
            "vi-sdk is installed beside runyard, and both are the package 'vi': files of one overwrite those of the "
            "other. This is Runyard's; keep vi-sdk in an environment of its own. `runyard doctor` says more.",
            RuntimeWarning,
            stacklevel=2,
        )


_warn_of_twin()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
