"""Every way the server says no, on one page.

    Refusal             carries a code of ``CODES``, a sentence, and for flows the list of problems

A code is stable and means one thing; ``docs/errors.md`` tells what to do about each, and a test compares the two.
The sentence says which value was wrong and what would be right. Anything else that escapes a service is a mistake of
ours and becomes ``Internal`` without a word about its inside.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

# code -> (HTTP status, title)
CODES: dict[str, tuple[int, str]] = {
    "DuplicateHeader": (400, "A header that may occur once occurs several times"),
    "BodyIncomplete": (400, "The request body ended early"),
    "InvalidBackup": (400, "The file cannot be restored"),
    "InvalidBody": (400, "The request body is not what this route takes"),
    "InvalidFlow": (400, "The flow cannot run"),
    "InvalidHost": (400, "The Host header names somebody else"),
    "InvalidId": (400, "The id is not well-formed"),
    "InvalidPageToken": (400, "The page token is not one of ours"),
    "InvalidPath": (400, "The path is not in canonical form"),
    "InvalidQuery": (400, "A query parameter has a value it cannot have"),
    "UnknownTrainingProject": (400, "The training project does not exist"),
    "Unauthorized": (401, "The key is missing or wrong"),
    "OriginRefused": (403, "Requests from other web sites are refused"),
    "RoleForbidden": (403, "The key's role does not allow this"),
    "NotFound": (404, "There is no such thing"),
    "MethodNotAllowed": (405, "The route exists, but not with this method"),
    "BodyTimeout": (408, "The request body did not arrive in time"),
    "KeyEnded": (409, "The key is revoked or has expired"),
    "LastAdminKey": (409, "No admin key that does not expire would be left"),
    "LeaseLost": (409, "The attempt is no longer yours"),
    "BlobMissing": (409, "A file that is referred to has not been uploaded"),
    "DatasetInUse": (409, "Runs that are under way need the dataset"),
    "BackupImpossible": (409, "A backup of what the store holds could not be restored"),
    "IdDeleted": (409, "The id belonged to something that was deleted"),
    "ImportOver": (409, "The import takes no more files"),
    "NameTaken": (409, "The dataset has another picture of this name"),
    "RestoreUnderWay": (409, "A backup is being restored already"),
    "RunExists": (409, "A run with this id and another body exists"),
    "RunFinished": (409, "The run has already ended"),
    "EtagMismatch": (412, "The resource has changed since you read it"),
    "BodyTooLarge": (413, "The request body is too large"),
    "UrlTooLong": (414, "The URL is too long"),
    "RangeNotSatisfiable": (416, "The range lies outside the file"),
    "TooManyRequests": (429, "Too many requests at once"),
    "HeadersTooLarge": (431, "The request headers are too large"),
    "Internal": (500, "The server made a mistake"),
    "StoreRestored": (503, "A backup was restored since the attempt last spoke"),
    "StorageUnavailable": (503, "The store cannot be written or read right now"),
}

RETRY_UNAVAILABLE_S = 2


class Problem(msgspec.Struct, rename="camel", kw_only=True):
    """One thing that is wrong with a body: where, what stands there, what may stand there."""

    path: str
    given: Any
    allowed: str
    message: str


class Refusal(Exception):
    """The request cannot be done as it stands; ``code`` says why in one word, ``message`` in one sentence."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        problems: Sequence[Problem] = (),
        retry_after_s: int | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.problems = list(problems)
        self._retry_after_s = retry_after_s
        self.allow = list(allow)  # methods that the path takes, where another one is the problem

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return CODES[self.code][0]

    @property
    def retry_after_s(self) -> int | None:
        """Seconds to wait before the same request may succeed; None when waiting does not help."""
        return RETRY_UNAVAILABLE_S if self._retry_after_s is None and self.status == 503 else self._retry_after_s

    @property
    def title(self) -> str:
        return CODES[self.code][1]


def unauthorized() -> Refusal:
    """The one answer for a key that is missing, wrong, revoked, expired, or of another kind than the route's."""
    return Refusal(
        "Unauthorized",
        "the key is missing or wrong; send it as 'Authorization: Bearer dtvi_...', "
        "as it stands in credentials.json of the data folder",
    )


def not_found(kind: str, id: str) -> Refusal:
    """The one answer for what does not exist, was deleted, or belongs to somebody else."""
    return Refusal("NotFound", f"{kind} {id!r} was not found; list what there is, or check the id")
