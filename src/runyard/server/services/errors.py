"""Every refusal of the server, on one page.

    Refusal             carries a code of ``CODES``, a sentence, and for flows the list of problems

A code is stable and means one thing. ``docs/errors.md`` documents what to do about each, and a test
compares the two. The sentence names the wrong value and what is expected. Anything else that
escapes a service is a defect of the server and becomes ``Internal``, without internal details.
"""

from collections.abc import Sequence

from runyard.flows import Problem as Problem

# code -> (HTTP status, title)
CODES: dict[str, tuple[int, str]] = {
    "DuplicateHeader": (400, "A header that may occur once occurs several times"),
    "BodyIncomplete": (400, "The request body ended early"),
    "InvalidBackup": (400, "The file cannot be restored"),
    "InvalidBody": (400, "The request body is not what this route accepts"),
    "InvalidFilter": (400, "The filter cannot be parsed"),
    "InvalidFlow": (400, "The flow cannot run"),
    "InvalidHost": (400, "The Host header names another server"),
    "InvalidId": (400, "The id is not well-formed"),
    "InvalidPageToken": (400, "The page token was not issued by this server"),
    "InvalidPath": (400, "The path is not in canonical form"),
    "InvalidQuery": (400, "A query parameter has a value it cannot have"),
    "UnknownTrainingProject": (400, "The training project does not exist"),
    "Unauthorized": (401, "The key is missing or wrong"),
    "InvalidCode": (401, "The link to sign in is not valid"),
    "OriginRefused": (403, "Requests from other web sites are refused"),
    "RoleForbidden": (403, "The key's role does not allow this"),
    "MachineMismatch": (403, "The key belongs to another machine"),
    "NotFound": (404, "The resource does not exist"),
    "MethodNotAllowed": (405, "The route exists, but not with this method"),
    "BodyTimeout": (408, "The request body did not arrive in time"),
    "KeyEnded": (409, "The key is revoked or has expired"),
    "LastAdminKey": (409, "No admin key that does not expire would be left"),
    "LeaseLost": (409, "The attempt is closed or belongs to another supervisor"),
    "BlobMissing": (409, "A file that is referred to has not been uploaded"),
    "DatasetInUse": (409, "Runs under way need the dataset"),
    "BackupImpossible": (409, "A backup of the store could not be restored"),
    "IdDeleted": (409, "The id belonged to a deleted resource"),
    "ImageInUse": (409, "Conversations of other images show the image"),
    "ImportOver": (409, "The import accepts no more files"),
    "IncompatibleVersion": (409, "The machine's version does not match the server's"),
    "MachineInUse": (409, "The machine has runs"),
    "MachineTaken": (409, "Another machine uses the id"),
    "NameTaken": (409, "The dataset has another image of this name"),
    "RestoreUnderWay": (409, "A backup is being restored already"),
    "RunExists": (409, "A run with this id and another body exists"),
    "RunFinished": (409, "The run has already ended"),
    "EtagMismatch": (412, "The resource has changed since you read it"),
    "BodyTooLarge": (413, "The request body is too large"),
    "UrlTooLong": (414, "The URL is too long"),
    "RangeNotSatisfiable": (416, "The range is outside the file"),
    "TooManyRequests": (429, "Too many requests at once"),
    "HeadersTooLarge": (431, "The request headers are too large"),
    "Internal": (500, "An internal error of the server"),
    "StoreRestored": (503, "A backup was restored since the attempt's last report"),
    "StorageUnavailable": (503, "The store cannot be written or read right now"),
}

RETRY_UNAVAILABLE_S = 2


class Refusal(Exception):
    """A request that cannot be executed.

    ``code`` is the reason in one word, ``message`` in one sentence.
    """

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
        self.allow = list(allow)  # methods that the path accepts, for MethodNotAllowed

    @property
    def status(self) -> int:
        """Return the HTTP status that belongs to the code."""
        return CODES[self.code][0]

    @property
    def retry_after_s(self) -> int | None:
        """Return the seconds until a retry may succeed; None when waiting does not help."""
        return (
            RETRY_UNAVAILABLE_S
            if self._retry_after_s is None and self.status == 503
            else self._retry_after_s
        )

    @property
    def title(self) -> str:
        return CODES[self.code][1]


def unauthorized() -> Refusal:
    """Build the refusal of a key that is missing, wrong, revoked, expired, or of another kind.

    It is the same for all of them, so that it reveals nothing.
    """
    return Refusal(
        "Unauthorized",
        "the key is missing or wrong; send it as 'Authorization: Bearer dtvi_...', "
        "with the key in credentials.json of the data folder",
    )


def not_found(kind: str, id: str) -> Refusal:
    """Build the refusal for what does not exist or belongs to another organization."""
    return Refusal(
        "NotFound", f"{kind} {id!r} was not found; try: check the id, or list what exists"
    )
