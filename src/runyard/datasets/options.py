"""The choices of a user about the meaning of annotations that their files leave open."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

BoxUnit = Literal["auto", "pixel", "fraction", "percent", "thousandth"]
BoxForm = Literal["auto", "corners", "size"]
OnBadBox = Literal["reject", "drop"]

BOX_UNITS: tuple[BoxUnit, ...] = get_args(BoxUnit)
BOX_FORMS: tuple[BoxForm, ...] = get_args(BoxForm)
ON_BAD_BOX: tuple[OnBadBox, ...] = get_args(OnBadBox)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read boxes.

    ``auto`` is what the format defines. Anything else applies to every box of the files.

    ``box_unit`` is the unit of the four numbers: pixels, fractions of the image, percent, or
    thousandths of the image (0-1000). ``box_form`` is what they mean: two corners, or the upper
    left corner with width and height. ``on_bad_box`` decides what an invalid box costs: its whole
    row, or only itself.
    """

    box_unit: BoxUnit = "auto"
    box_form: BoxForm = "auto"
    on_bad_box: OnBadBox = "reject"


DEFAULT_OPTIONS = ReadOptions()


def parse_read_options(policies: Mapping[str, Any]) -> ReadOptions:
    """Return the options among the policies of an import, such as ``boxUnit``.

    Raises ValueError for an unknown value.
    """
    return ReadOptions(
        box_unit=parse_choice(policies, "boxUnit", BOX_UNITS, default="auto"),
        box_form=parse_choice(policies, "boxForm", BOX_FORMS, default="auto"),
        on_bad_box=parse_choice(policies, "onBadBox", ON_BAD_BOX, default="reject"),
    )


def parse_choice(
    policies: Mapping[str, Any], name: str, allowed: tuple[Any, ...], *, default: str
) -> Any:
    """Return one of the allowed values; raise ValueError for another one."""
    value = policies.get(name, default)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value
