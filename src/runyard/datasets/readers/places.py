"""Where a reader stands in a file, so that what it finds is told with file, line and field."""

from dataclasses import dataclass, replace

from runyard.datasets.findings import Action, Say, finding


@dataclass(frozen=True, slots=True)
class Place:
    """A file, and a row of it. ``field`` is the way to the row in files without lines, such as ``[3]``."""

    file: str
    tell: Say
    line: int | None = None
    field: str | None = None

    def at(self, *, line: int | None = None, field: str | None = None) -> "Place":
        return replace(self, line=line, field=field)

    def say(
        self,
        code: str,
        cause: str,
        *,
        field: str | None = None,
        value: object = None,
        action: Action | None = None,
        cure: str | None = None,
    ) -> None:
        """Tell a finding here; ``field`` is the one within the row."""
        found = finding(
            code,
            file=self.file,
            line=self.line,
            field=self.within(field),
            cause=cause,
            value=value,
            action=action,
            cure=cure,
        )
        self.tell(found)

    def within(self, field: str | None) -> str | None:
        """The way to a field of this row."""
        if self.field is None or field is None:
            return field if self.field is None else self.field
        return self.field + (field if field.startswith("[") else f".{field}")
