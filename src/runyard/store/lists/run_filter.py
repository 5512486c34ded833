"""What a list of runs is filtered by: terms, all of which must match."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Field = Literal[
    "condition", "flow", "flow id", "project", "name", "id", "text", "attribute", "metric",
    "created", "duration", "killed",
]  # fmt: skip
Operator = Literal["=", "<", "<=", ">", ">="]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One condition on a run.

    ``key`` names the attribute or metric. The value of a condition is a tuple of which one must
    match; that of an attribute is None if any value matches; times and durations are milliseconds.
    ``is_age``: the value counts back from now.
    """

    field: Field
    value: str | int | float | tuple[str, ...] | None
    operator: Operator = "="
    key: str = ""
    is_negated: bool = False
    is_age: bool = False


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """The filter of a list of runs; a run must match everything that is given.

    ``terms`` come from a filter text, the other fields from single query parameters.
    """

    condition: str | None = None
    flow_id: str | None = None
    training_project: str | None = None
    attributes: Sequence[tuple[str, str]] = field(default=())
    created_after: int | None = None
    created_before: int | None = None
    terms: tuple[Term, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.list_terms(now_ms=0)

    def list_terms(self, *, now_ms: int) -> list[Term]:
        """Return everything that a run must match, with ages counted back from ``now_ms``."""
        terms = [Term(field="attribute", key=key, value=value) for key, value in self.attributes]
        if self.condition is not None:
            terms.append(Term(field="condition", value=(self.condition,)))
        if self.flow_id is not None:
            terms.append(Term(field="flow id", value=self.flow_id))
        if self.training_project is not None:
            terms.append(Term(field="project", value=self.training_project))
        if self.created_after is not None:
            terms.append(Term(field="created", operator=">", value=self.created_after))
        if self.created_before is not None:
            terms.append(Term(field="created", operator="<", value=self.created_before))
        return [*terms, *(_fix_age(term, now_ms) for term in self.terms)]


def _fix_age(term: Term, now_ms: int) -> Term:
    if not term.is_age or not isinstance(term.value, int):
        return term
    return Term(
        field=term.field,
        operator=term.operator,
        value=max(0, now_ms - term.value),
        is_negated=term.is_negated,
    )
