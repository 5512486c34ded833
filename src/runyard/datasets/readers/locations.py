"""The location of a reader in its file, which its findings are reported with."""

from dataclasses import dataclass, replace

from runyard.datasets.findings import Action, ReportFinding, make_finding


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A file and a row in it.

    ``field`` is the path to the row in files without lines, such as ``[3]``.
    """

    file: str
    report_finding: ReportFinding
    line: int | None = None
    field: str | None = None

    def at(self, *, line: int | None = None, field: str | None = None) -> "SourceLocation":
        return replace(self, line=line, field=field)

    def report(
        self,
        code: str,
        cause: str,
        *,
        field: str | None = None,
        value: object = None,
        action: Action | None = None,
        fix: str | None = None,
        rows: int | None = None,
    ) -> None:
        """Report a finding at this location; ``field`` is relative to the row.

        ``rows`` is the number of rows that a finding about several rows leaves out.
        """
        found = make_finding(
            code,
            file=self.file,
            line=self.line,
            field=self.resolve_field(field),
            cause=cause,
            value=value,
            action=action,
            fix=fix,
            rows=rows,
        )
        self.report_finding(found)

    def resolve_field(self, field: str | None) -> str | None:
        """Return the path of a field of this row."""
        if self.field is None or field is None:
            return field if self.field is None else self.field
        return self.field + (field if field.startswith("[") else f".{field}")
