"""The choice of the attribute that is the class of VIA's regions.

VIA has no classes, only attributes of regions that its user names. The choice is made once for a
file, by the attributes that have a value in any region: a choice for each region would take a color
for a class wherever the class was left empty.
"""

from runyard.datasets.findings import ReportFinding, make_finding

# Attributes that name the class, the clearest first. A later group decides if no earlier one does.
CLASS_ATTRIBUTES = (
    ("label", "labels", "class", "classes", "class_name", "classname", "category", "label_name"),
    ("type", "name", "object", "object_name", "tag", "kind", "species"),
)


class AttributeUnclear(Exception):
    """Several attributes could be the class."""


def choose_attribute(names: list[str]) -> str | None:
    """Choose the attribute that is the class; None if no region has any.

    Raises AttributeUnclear.
    """
    for group in CLASS_ATTRIBUTES:
        fitting = [name for name in names if _fold(name) in group]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise AttributeUnclear(_join_names(fitting))
    if len(names) > 1:
        raise AttributeUnclear(_join_names(names))
    return names[0] if names else None


def _fold(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _join_names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:5])
    return f"{shown}, …" if len(names) > 5 else shown


def report_unclear(error: AttributeUnclear, path: str, report: ReportFinding) -> None:
    """Report a file whose attributes leave the class open."""
    report(
        make_finding(
            "ClassUnknown",
            file=path,
            cause=f"several attributes of the regions could be the class: {error}",
            fix="rename the one with the class to 'label', or remove the others",
            action="FileRejected",
        )
    )
