"""The exception tree and its attributes."""

import copy

import pytest

import vi
from vi.errors import ViErrorCode

BASES = {
    "PaginationError": "ViOperationError",
    "ViRunFailedError": "ViOperationError",
    "ViImportFailedError": "ViOperationError",
    "ViRunVanishedError": "ViNotFoundError",
    "ViInvalidParameterError": "ViValidationError",
    "ViFileTooLargeError": "ViValidationError",
    "ViInvalidFileFormatError": "ViValidationError",
}
NAMES = [name for name in vi.__all__ if name.endswith("Error") and name != "ViError"]


@pytest.mark.parametrize("name", NAMES)
def test_the_error_tree_matches_its_drawing(name: str) -> None:
    assert getattr(vi, name).__bases__ == (getattr(vi, BASES.get(name, "ViError")),)


@pytest.mark.parametrize("name", NAMES)
def test_every_error_is_drawn(name: str) -> None:
    assert f"── {name} " in f"{vi.errors.__doc__}".replace("\n", " ")


def test_text_begins_with_the_code_and_ends_with_the_suggestion() -> None:
    error = vi.ViNotFoundError("run r-17 not found", status_code=404, suggestion="Check the id.")
    assert str(error) == "[ResourceNotFound] run r-17 not found (HTTP 404)\nCheck the id."
    assert str(vi.ViError("?")) == "[UnknownError] ?"


def test_an_error_is_plain_data_for_logs() -> None:
    error = vi.ViServerError(
        "down", status_code=503, error_code=ViErrorCode.SERVICE_UNAVAILABLE, trace_id="t-1"
    )
    assert error.to_dict() == {
        "type": "ViServerError",
        "error_code": "ServiceUnavailable",
        "http_status": 503,
        "message": "down",
        "status_code": 503,
        "suggestion": None,
        "trace_id": "t-1",
    }
    assert vi.ViError("x", details={"code": "RunFinished"}).to_dict()["details"] == {
        "code": "RunFinished"
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_API_KEY", 401),
        ("PERMISSION_DENIED", 403),
        ("MISSING_REQUIRED_FIELD", 400),
        ("FILE_TOO_LARGE", 413),
        ("RESOURCE_NOT_FOUND", 404),
        ("RESOURCE_CONFLICT", 409),
        ("RESOURCE_LIMIT_EXCEEDED", 429),
        ("CONNECTION_FAILED", 502),
        ("SERVICE_UNAVAILABLE", 503),
        ("TIMEOUT_ERROR", 504),
        ("DOWNLOAD_FAILED", 500),
        ("UNKNOWN_ERROR", 500),
    ],
)
def test_each_code_has_its_http_status(code: str, status: int) -> None:
    assert vi.ViError("x", error_code=ViErrorCode[code]).http_status == status


def test_member_names_are_the_values_in_upper_snake_case() -> None:
    for code in ViErrorCode:
        assert "".join(word.capitalize() for word in code.name.split("_")) == code.value


def test_only_temporary_errors_are_retryable() -> None:
    retryable = {
        code.value for code in ViErrorCode if vi.ViError("x", error_code=code).is_retryable()
    }
    assert retryable == {
        "NetworkError",
        "TimeoutError",
        "ConnectionFailed",
        "ServerError",
        "ServiceUnavailable",
        "RateLimitExceeded",
    }


def test_client_and_server_errors_are_distinguished() -> None:
    assert vi.ViNotFoundError("x").is_client_error()
    assert not vi.ViNotFoundError("x").is_server_error()
    assert vi.ViNetworkError("x").is_server_error()
    assert vi.ViError("x", status_code=422).is_client_error()


def test_a_copied_error_has_the_same_message() -> None:
    error = vi.ViConflictError("busy", status_code=409, details={"code": "RunFinished"})
    again = copy.deepcopy(error)
    assert (type(again), str(again), again.code) == (vi.ViConflictError, str(error), "RunFinished")
