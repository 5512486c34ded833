"""The SDK of Runyard: train vision-language models through ``client.runs``.

Importing this package loads almost nothing; each public name is resolved on first use. Scripts and
command lines that only print ``--help`` therefore do not load an HTTP stack.
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
__distribution__ = "runyard"  # distinguishes this package from the vi package of vi-sdk

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


def _warn_if_vi_sdk_installed() -> None:
    """Warn that vi-sdk is installed next to this package: both install files as ``vi``."""
    import os

    try:
        siblings = os.listdir(os.path.dirname(__path__[0]))  # noqa: PTH120, PTH208 - avoids pathlib
    except OSError:
        return  # in an archive, where nothing can have been overwritten
    if any(name.startswith(("vi_sdk-", "vi-sdk-")) for name in siblings):
        import warnings

        warnings.warn(
            "vi-sdk is installed in the same environment as runyard; both install the package 'vi' "
            "and overwrite each other's files. The imported package is Runyard's. "
            "try: install vi-sdk in a separate environment; `runyard doctor` reports details",
            RuntimeWarning,
            stacklevel=2,
        )


_warn_if_vi_sdk_installed()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
