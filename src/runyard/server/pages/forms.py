"""Forms: what a page posts, as names with values."""

from urllib.parse import parse_qsl

from runyard import limits
from runyard.server.http.request import MAX_ITEMS, Request
from runyard.server.services.errors import Refusal


class Form:
    """The fields of a posted form."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def text(self, name: str, default: str = "") -> str:
        """Return the first value of a field."""
        return next((value for key, value in self._pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return [value for key, value in self._pairs if key == name]


async def parse_form(request: Request) -> Form:
    """Return the fields of a body of type ``application/x-www-form-urlencoded``.

    Raises:
        Refusal: InvalidBody.
    """
    body = await request.body()
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_ITEMS)
    except ValueError as error:
        raise Refusal("InvalidBody", f"the form is not valid: {error}; try: reload the page") from (
            error
        )
    for name, value in pairs:
        if problem := limits.BODY_TEXT.find_problem(name) or limits.BODY_TEXT.find_problem(value):
            raise Refusal("InvalidBody", f"the field {name[:80]!r} {problem}")
    return Form(pairs)
