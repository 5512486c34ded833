"""All exceptions of the SDK: one tree.

    ViError
    ├── ViAuthenticationError          401, 403: the key is unknown or lacks permission
    ├── ViPermissionError              kept for compatibility; a 403 raises ViAuthenticationError
    ├── ViNotFoundError                404
    │   └── ViRunVanishedError         the run was deleted while a caller waited for it
    ├── ViConflictError                409, 412: changed by someone else, or state forbids it
    ├── ViRateLimitError               429, after all retries
    ├── ViServerError                  5xx, after all retries
    ├── ViNetworkError                 no response: refused, unreachable or disconnected
    ├── ViTimeoutError                 no response in time, 408, or the timeout of ``wait``
    ├── ViConfigurationError           a missing or malformed credential or endpoint; not sent
    ├── ViOperationError               the server responded, but the operation did not succeed
    │   ├── ViRunFailedError           the awaited run ended in Failed, Error or Cancelled
    │   ├── ViImportFailedError        the awaited import accepted nothing
    │   └── PaginationError            a list repeats a page token
    ├── ViDownloadError                a download is damaged, interrupted or cannot be stored
    ├── ViUploadError                  an upload failed, or a file cannot be read
    └── ViValidationError              400 and other 4xx: the server rejects the request
        ├── ViInvalidParameterError    rejected by the SDK; nothing was sent
        ├── ViFileTooLargeError
        └── ViInvalidFileFormatError

The message names the wrong value; ``suggestion`` says what to do. ``details`` holds the other
fields of the server's problem document, such as its stable ``code`` and the list of ``problems``.
Secret keys never appear in an exception.
"""

import enum
from typing import TYPE_CHECKING, Any

from vi._text import printable

if TYPE_CHECKING:
    from vi.api.resources.datasets.results import FolderImport
    from vi.api.resources.runs.responses import Run
    from vi.api.responses import ConditionKind


class ViErrorCode(enum.StrEnum):
    """Kind of failure, independent of the message text."""

    AUTHENTICATION_FAILED = "AuthenticationFailed"
    INVALID_API_KEY = "InvalidApiKey"
    EXPIRED_CREDENTIALS = "ExpiredCredentials"
    PERMISSION_DENIED = "PermissionDenied"
    VALIDATION_FAILED = "ValidationFailed"
    INVALID_PARAMETER = "InvalidParameter"
    MISSING_REQUIRED_FIELD = "MissingRequiredField"
    INVALID_FILE_FORMAT = "InvalidFileFormat"
    FILE_TOO_LARGE = "FileTooLarge"
    RESOURCE_NOT_FOUND = "ResourceNotFound"
    RESOURCE_CONFLICT = "ResourceConflict"
    RATE_LIMIT_EXCEEDED = "RateLimitExceeded"
    RESOURCE_LIMIT_EXCEEDED = "ResourceLimitExceeded"
    NETWORK_ERROR = "NetworkError"
    CONNECTION_FAILED = "ConnectionFailed"
    SERVICE_UNAVAILABLE = "ServiceUnavailable"
    TIMEOUT_ERROR = "TimeoutError"
    SERVER_ERROR = "ServerError"
    OPERATION_FAILED = "OperationFailed"
    DOWNLOAD_FAILED = "DownloadFailed"
    UPLOAD_FAILED = "UploadFailed"
    CONFIGURATION_ERROR = "ConfigurationError"
    UNKNOWN_ERROR = "UnknownError"


_CODES_BY_HTTP_STATUS = {
    401: {
        ViErrorCode.AUTHENTICATION_FAILED,
        ViErrorCode.INVALID_API_KEY,
        ViErrorCode.EXPIRED_CREDENTIALS,
    },
    403: {ViErrorCode.PERMISSION_DENIED},
    400: {
        ViErrorCode.VALIDATION_FAILED,
        ViErrorCode.INVALID_PARAMETER,
        ViErrorCode.MISSING_REQUIRED_FIELD,
        ViErrorCode.INVALID_FILE_FORMAT,
    },
    413: {ViErrorCode.FILE_TOO_LARGE},
    404: {ViErrorCode.RESOURCE_NOT_FOUND},
    409: {ViErrorCode.RESOURCE_CONFLICT},
    429: {ViErrorCode.RATE_LIMIT_EXCEEDED, ViErrorCode.RESOURCE_LIMIT_EXCEEDED},
    502: {ViErrorCode.NETWORK_ERROR, ViErrorCode.CONNECTION_FAILED},
    503: {ViErrorCode.SERVICE_UNAVAILABLE},
    504: {ViErrorCode.TIMEOUT_ERROR},
}
_HTTP_STATUS = {code: status for status, codes in _CODES_BY_HTTP_STATUS.items() for code in codes}
_RETRYABLE = {
    ViErrorCode.NETWORK_ERROR,
    ViErrorCode.TIMEOUT_ERROR,
    ViErrorCode.CONNECTION_FAILED,
    ViErrorCode.SERVER_ERROR,
    ViErrorCode.SERVICE_UNAVAILABLE,
    ViErrorCode.RATE_LIMIT_EXCEEDED,
}


class ViError(Exception):
    """Base class of all exceptions of the SDK.

    Attributes:
        message: What was wrong, with the value.
        error_code: Kind of failure.
        status_code: HTTP status, or None if no response arrived.
        suggestion: What to do about it.
        cause: Underlying exception, if any.
        details: Further fields; from the server, ``code`` and ``problems``.
        retry_after: Seconds to wait, as requested by the server.
        trace_id: Request id assigned by the server.
        organization_id: Organization of the request.
    """

    default_code = ViErrorCode.UNKNOWN_ERROR

    def __init__(
        self,
        message: str,
        *,
        error_code: ViErrorCode | None = None,
        status_code: int | None = None,
        suggestion: str | None = None,
        cause: BaseException | None = None,
        details: dict[str, Any] | None = None,
        retry_after: float | None = None,
        trace_id: str | None = None,
        organization_id: str | None = None,
    ) -> None:
        # Lone surrogates would make the exception unprintable and hide its cause.
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.error_code = error_code or self.default_code
        self.status_code = status_code
        self.suggestion = None if suggestion is None else printable(suggestion)
        self.cause = cause
        self.details = details or {}
        self.retry_after = retry_after
        self.trace_id = trace_id
        self.organization_id = organization_id

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all attributes except ``cause``, which may hold a connection."""
        return type(self), (self.message,), {**self.__dict__, "cause": None}

    def __str__(self) -> str:
        text = f"[{self.error_code.value}] {self.message}"
        if self.status_code is not None:
            text += f" (HTTP {self.status_code})"
        if self.suggestion:
            text += f"\n{self.suggestion}"
        return text

    @property
    def http_status(self) -> int:
        """HTTP status that corresponds to ``error_code``, even if no response arrived."""
        return _HTTP_STATUS.get(self.error_code, 500)

    @property
    def code(self) -> str | None:
        """Stable problem code from the server, such as ``RunFinished``; None without one."""
        code = self.details.get("code")
        return code if isinstance(code, str) else None

    def is_client_error(self) -> bool:
        """Return True if the request caused the failure (4xx)."""
        return 400 <= (self.status_code or self.http_status) < 500

    def is_server_error(self) -> bool:
        """Return True if the server or the network caused the failure (5xx)."""
        return (self.status_code or self.http_status) >= 500

    def is_retryable(self) -> bool:
        """Return True if the same call may succeed later."""
        return self.error_code in _RETRYABLE

    def to_dict(self) -> dict[str, Any]:
        """Return the exception as a dict, for logs."""
        document: dict[str, Any] = {
            "type": type(self).__name__,
            "error_code": self.error_code.value,
            "http_status": self.http_status,
            "message": self.message,
            "status_code": self.status_code,
            "suggestion": self.suggestion,
        }
        if self.details:
            document["details"] = self.details
        if self.trace_id:
            document["trace_id"] = self.trace_id
        return document


class ViAuthenticationError(ViError):
    """Unknown key, or a key without permission for the request."""

    default_code = ViErrorCode.AUTHENTICATION_FAILED


class ViPermissionError(ViError):
    """Key without permission for the request."""

    default_code = ViErrorCode.PERMISSION_DENIED


class ViNotFoundError(ViError):
    """No resource with this id that the organization may see."""

    default_code = ViErrorCode.RESOURCE_NOT_FOUND


class ViRunVanishedError(ViNotFoundError):
    """Run deleted while a caller waited for it."""


class ViConflictError(ViError):
    """Resource changed by another client, or in a state that forbids the request."""

    default_code = ViErrorCode.RESOURCE_CONFLICT


class ViRateLimitError(ViError):
    """Rate limit exceeded, after all retries."""

    default_code = ViErrorCode.RATE_LIMIT_EXCEEDED


class ViServerError(ViError):
    """Server failure, after all retries."""

    default_code = ViErrorCode.SERVER_ERROR


class ViNetworkError(ViError):
    """No response: the connection was refused or lost."""

    default_code = ViErrorCode.NETWORK_ERROR


class ViTimeoutError(ViError):
    """No response, or no end of a run or import, within the timeout."""

    default_code = ViErrorCode.TIMEOUT_ERROR


class ViConfigurationError(ViError):
    """Missing or malformed credential or client setting; nothing was sent."""

    default_code = ViErrorCode.CONFIGURATION_ERROR


class ViOperationError(ViError):
    """Operation that the server answered but that did not succeed."""

    default_code = ViErrorCode.OPERATION_FAILED


class ViRunFailedError(ViOperationError):
    """Run that ended in Failed, Error or Cancelled.

    Attributes:
        run: The run in its final state.
        condition: Its last condition: Failed, Error or Cancelled.
        reason: Reason of that condition, such as ``OutOfMemory``.
    """

    def __init__(self, message: str, *, run: "Run | None" = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.run = run

    @property
    def condition(self) -> "ConditionKind | None":
        return self.run.condition if self.run else None

    @property
    def reason(self) -> str | None:
        return (
            self.run.status.conditions[-1].reason
            if self.run and self.run.status.conditions
            else None
        )


class ViImportFailedError(ViOperationError):
    """Import that ended without accepting any data.

    Attributes:
        imported: The import, with its findings.
    """

    def __init__(
        self, message: str, *, imported: "FolderImport | None" = None, **context: Any
    ) -> None:
        super().__init__(message, **context)
        self.imported = imported


class PaginationError(ViOperationError):
    """The server named the same page twice, so the list would never end."""


class ViDownloadError(ViError):
    """Download that is damaged, was interrupted too often, or cannot be stored."""

    default_code = ViErrorCode.DOWNLOAD_FAILED


class ViUploadError(ViError):
    """Upload that failed."""

    default_code = ViErrorCode.UPLOAD_FAILED


class ViValidationError(ViError):
    """Request rejected by the server; ``details["problems"]`` lists each problem and its path."""

    default_code = ViErrorCode.VALIDATION_FAILED


class ViInvalidParameterError(ViValidationError):
    """Invalid argument, rejected by the SDK; nothing was sent."""

    default_code = ViErrorCode.INVALID_PARAMETER


class ViFileTooLargeError(ViValidationError):
    """File larger than allowed."""

    default_code = ViErrorCode.FILE_TOO_LARGE


class ViInvalidFileFormatError(ViValidationError):
    """File in an unsupported format."""

    default_code = ViErrorCode.INVALID_FILE_FORMAT
