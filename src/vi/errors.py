"""Everything the SDK raises: one tree.

    ViError
    ├── ViAuthenticationError          401, 403: the key is unknown, or may not do this
    ├── ViPermissionError              kept for callers that catch it; the server's 403 is a ViAuthenticationError
    ├── ViNotFoundError                404
    │   └── ViRunVanishedError         the run was there when waiting began, and was deleted meanwhile
    ├── ViConflictError                409, 412: somebody else changed it, or it is in a state that forbids this
    ├── ViRateLimitError               429, after all retries
    ├── ViServerError                  5xx, after all retries
    ├── ViNetworkError                 no answer at all: refused, unreachable, cut
    ├── ViTimeoutError                 no answer in time, 408, or ``wait`` came to its limit
    ├── ViConfigurationError           a credential or the endpoint is missing or malformed; nothing was sent
    ├── ViOperationError               the server answered, but not with what was asked for
    │   ├── ViRunFailedError           the run that was waited for ended in Failed, Error or Cancelled
    │   ├── ViImportFailedError        the import that was waited for took nothing, and why
    │   └── PaginationError            a list repeats itself
    ├── ViDownloadError                a download is damaged, was cut too often, or cannot be stored
    ├── ViUploadError                  the same for the other direction
    └── ViValidationError              400 and the other 4xx: the server refuses what was sent
        ├── ViInvalidParameterError    refused here already, nothing was sent
        ├── ViFileTooLargeError
        └── ViInvalidFileFormatError

A message says which value was wrong and, in ``suggestion``, what to do. What the server sent along, such as its own
stable ``code`` and the list of ``problems``, is in ``details``. A secret key never appears in any of it.
"""

import enum
from typing import TYPE_CHECKING, Any

from vi._text import printable

if TYPE_CHECKING:
    from vi.api.resources.datasets.results import FolderImport
    from vi.api.resources.runs.responses import Run
    from vi.api.responses import ConditionKind


class ViErrorCode(enum.StrEnum):
    """What kind of failure it is, independent of the wording."""

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
    401: {ViErrorCode.AUTHENTICATION_FAILED, ViErrorCode.INVALID_API_KEY, ViErrorCode.EXPIRED_CREDENTIALS},
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
    """Base of everything the SDK raises.

    Attributes:
        message: what was wrong, with the value.
        error_code: the kind of failure.
        status_code: the HTTP status, or None if no answer arrived.
        suggestion: what to do about it.
        cause: the exception underneath, if any.
        details: what else is known; from the server ``code`` and ``problems``.
        retry_after: seconds the server asked to wait.
        trace_id: the server's name for the request.
        organization_id: the organisation the request was for.
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
        # What was given may have lone surrogates in it, and an error that cannot be printed or logged hides its cause.
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
        """Pickle everything but ``cause``, which may hold a connection; its words are in the message."""
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
        """The HTTP status that belongs to ``error_code``, also where no answer arrived."""
        return _HTTP_STATUS.get(self.error_code, 500)

    @property
    def code(self) -> str | None:
        """The server's own stable word for the failure, such as ``RunFinished``."""
        code = self.details.get("code")
        return code if isinstance(code, str) else None

    def is_client_error(self) -> bool:
        """Whether the request was at fault."""
        return 400 <= (self.status_code or self.http_status) < 500

    def is_server_error(self) -> bool:
        """Whether the server, or the way to it, was at fault."""
        return (self.status_code or self.http_status) >= 500

    def is_retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.error_code in _RETRYABLE

    def to_dict(self) -> dict[str, Any]:
        """The error as plain data, for logs."""
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
    """The server does not know the key, or the key may not do this."""

    default_code = ViErrorCode.AUTHENTICATION_FAILED


class ViPermissionError(ViError):
    """The key may not do this."""

    default_code = ViErrorCode.PERMISSION_DENIED


class ViNotFoundError(ViError):
    """There is nothing under this id, or nothing this organisation may see."""

    default_code = ViErrorCode.RESOURCE_NOT_FOUND


class ViRunVanishedError(ViNotFoundError):
    """The run was deleted while somebody waited for it."""


class ViConflictError(ViError):
    """The resource is in a state that forbids this, or was changed by somebody else."""

    default_code = ViErrorCode.RESOURCE_CONFLICT


class ViRateLimitError(ViError):
    """The server is too busy, and stayed so through all retries."""

    default_code = ViErrorCode.RATE_LIMIT_EXCEEDED


class ViServerError(ViError):
    """The server failed, and kept failing through all retries."""

    default_code = ViErrorCode.SERVER_ERROR


class ViNetworkError(ViError):
    """No answer: the connection was refused or lost."""

    default_code = ViErrorCode.NETWORK_ERROR


class ViTimeoutError(ViError):
    """No answer, or no end of a run, within the time given."""

    default_code = ViErrorCode.TIMEOUT_ERROR


class ViConfigurationError(ViError):
    """A credential or a setting of the client is missing or malformed; nothing was sent."""

    default_code = ViErrorCode.CONFIGURATION_ERROR


class ViOperationError(ViError):
    """The server answered, but not with what was asked for."""

    default_code = ViErrorCode.OPERATION_FAILED


class ViRunFailedError(ViOperationError):
    """The run ended, and not in Succeeded.

    Attributes:
        run: the run as it ended.
        condition: its last condition: Failed, Error or Cancelled.
        reason: the platform's word for why, such as ``OutOfMemory``.
    """

    def __init__(self, message: str, *, run: "Run | None" = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.run = run

    @property
    def condition(self) -> "ConditionKind | None":
        return self.run.condition if self.run else None

    @property
    def reason(self) -> str | None:
        return self.run.status.conditions[-1].reason if self.run and self.run.status.conditions else None


class ViImportFailedError(ViOperationError):
    """An import ended without taking anything.

    Attributes:
        imported: what it was, with its findings.
    """

    def __init__(self, message: str, *, imported: "FolderImport | None" = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.imported = imported


class PaginationError(ViOperationError):
    """The server named the same page twice, so the list would never end."""


class ViDownloadError(ViError):
    """A download is damaged, was cut too often, or cannot be stored; nothing damaged is left under the final name."""

    default_code = ViErrorCode.DOWNLOAD_FAILED


class ViUploadError(ViError):
    """An upload did not arrive."""

    default_code = ViErrorCode.UPLOAD_FAILED


class ViValidationError(ViError):
    """The server refuses what was sent; ``details["problems"]`` lists every problem with its path."""

    default_code = ViErrorCode.VALIDATION_FAILED


class ViInvalidParameterError(ViValidationError):
    """An argument is wrong; nothing was sent."""

    default_code = ViErrorCode.INVALID_PARAMETER


class ViFileTooLargeError(ViValidationError):
    """A file is larger than allowed."""

    default_code = ViErrorCode.FILE_TOO_LARGE


class ViInvalidFileFormatError(ViValidationError):
    """A file is not of a kind that can be used here."""

    default_code = ViErrorCode.INVALID_FILE_FORMAT
