"""Conversion of HTTP responses to helpful errors."""

import json
from typing import Any

import pytest

import vi
from vi._http.response import Response, error_from_response, retry_after_s


def error(
    status: int, document: Any = None, *, body: bytes | None = None, **headers: str
) -> vi.ViError:
    content = json.dumps(document).encode() if body is None else body
    return error_from_response(
        Response(status=status, headers=headers, body=content),
        request_name="GET /workspaces/lab/runs/r-1",
    )


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, vi.ViValidationError, "ValidationFailed"),
        (401, vi.ViAuthenticationError, "AuthenticationFailed"),
        (403, vi.ViAuthenticationError, "PermissionDenied"),
        (404, vi.ViNotFoundError, "ResourceNotFound"),
        (405, vi.ViValidationError, "ValidationFailed"),
        (408, vi.ViTimeoutError, "TimeoutError"),
        (409, vi.ViConflictError, "ResourceConflict"),
        (412, vi.ViConflictError, "ResourceConflict"),
        (413, vi.ViValidationError, "FileTooLarge"),
        (422, vi.ViValidationError, "ValidationFailed"),
        (429, vi.ViRateLimitError, "RateLimitExceeded"),
        (500, vi.ViServerError, "ServerError"),
        (502, vi.ViServerError, "NetworkError"),
        (503, vi.ViServerError, "ServiceUnavailable"),
        (504, vi.ViServerError, "TimeoutError"),
    ],
)
def test_each_status_has_its_class_and_code(status: int, kind: type[vi.ViError], code: str) -> None:
    raised = error(status, {"message": "no"})
    assert (type(raised), raised.error_code.value, raised.status_code) == (kind, code, status)


def test_every_problem_is_shown_with_its_path() -> None:
    raised = error(
        400,
        {
            "message": "the flow has 2 problems",
            "code": "InvalidFlow",
            "problems": [
                {
                    "path": "/blocks/1/settings/epochs",
                    "given": 0,
                    "allowed": "1 to 10000",
                    "message": "epochs is 0",
                },
                {"path": "/blocks/2/block", "given": "modle", "allowed": "dataset, model"},
            ],
        },
    )
    assert raised.message.splitlines() == [
        "the flow has 2 problems",
        "  /blocks/1/settings/epochs: epochs is 0",
        "  /blocks/2/block: 'modle', expected: dataset, model",
    ]
    assert raised.code == "InvalidFlow"
    assert [problem["path"] for problem in raised.details["problems"]] == [
        "/blocks/1/settings/epochs",
        "/blocks/2/block",
    ]


def test_a_problem_in_the_message_is_not_repeated() -> None:
    problem = {
        "path": "?condition",
        "given": "Foo",
        "message": "condition is 'Foo'; it must be Running",
    }
    raised = error(
        400,
        {
            "message": "query parameter condition is 'Foo'; it must be Running",
            "problems": [problem],
        },
    )
    assert raised.message == "query parameter condition is 'Foo'; it must be Running"


def test_a_problem_document_has_its_own_suggestion() -> None:
    assert error(412, {"message": "read it again", "code": "EtagMismatch"}).suggestion is None
    assert "new etag" in str(error(412, {"message": "no"}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"message": "run r-1 not found"}', "run r-1 not found"),
        (b'{"error": "gone"}', "gone"),
        (b'{"message": 7, "detail": "a detail"}', "a detail"),
        (b"<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"),
        (b"[1, 2]", "[1, 2]"),
        (b"", "GET /workspaces/lab/runs/r-1 returned status 404"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_any_body_gives_a_message(body: bytes, message: str) -> None:
    assert error(404, body=body).message == message


def test_a_redirect_is_reported_and_not_followed() -> None:
    raised = error(301, body=b"", location="https://elsewhere.example/")
    assert isinstance(raised, vi.ViOperationError)
    assert "https://elsewhere.example/" in str(raised)


@pytest.mark.parametrize(
    ("given", "wait_s"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-1", 0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 50),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(given: str, wait_s: float | None) -> None:
    assert retry_after_s({"retry-after": given}, now_s=10.0) == wait_s


def test_header_values_are_kept() -> None:
    headers = {"retry-after": "9", "x-cloud-trace-context": "abc/1;o=1"}
    raised = error_from_response(
        Response(status=429, headers=headers, body=b""), request_name="GET /x"
    )
    assert (raised.retry_after, raised.trace_id) == (9, "abc")
