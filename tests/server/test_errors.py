"""The page about errors matches the code."""

import re
from pathlib import Path

from runyard.server.services.errors import CODES

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def test_the_page_lists_every_code_with_its_status_and_no_other() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE
    )
    assert {code: int(status) for code, status, _, _ in rows} == {
        code: CODES[code][0] for code in CODES
    }
    assert len(rows) == len(CODES)


def test_every_code_is_used_somewhere() -> None:
    source = Path(__file__).parents[2] / "src" / "runyard" / "server"
    text = "\n".join(path.read_text() for path in source.rglob("*.py") if path.name != "errors.py")
    text += (source / "services" / "errors.py").read_text().partition("class Refusal")[2]
    assert [code for code in CODES if f'"{code}"' not in text] == []
