"""The training benchmark is fair: our trainer and a bare loop learn the same from equal samples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "train_speed.py"
PAGE = """# Results of the benchmarks

## Another one

| 1 |

<!-- train_speed -->
an older table
<!-- end of train_speed -->

## A third one
"""


@pytest.mark.slow
def test_the_short_form_has_the_same_losses_and_replaces_only_its_own_results(
    tmp_path: Path,
) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text(PAGE)
    command: list[str | Path] = [sys.executable, PROGRAM, "--short", "--json", "--write", page]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    rows = {row["loop"]: row for row in json.loads(ended.stdout)["rows"]}
    assert list(rows) == ["ours", "bare"]
    assert rows["ours"]["remark"] == "same curve"
    assert rows["bare"]["last_loss"] < rows["bare"]["first_loss"]
    before, after = PAGE.split("<!-- train_speed -->\nan older table\n<!-- end of train_speed -->")
    written = page.read_text()
    assert written.startswith(before)
    assert written.endswith(after)
    assert "| tiny | bare |" in written
    assert "an older table" not in written
