"""``runyard simulate``: its table, JSON, image and errors."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.commands import Runyard

SMALL = ("simulate", "--nodes", "3", "--runs", "60", "--load", "1.5")
TRACE = "submit_s,project,duration_s,accelerators\n0,vision,100,8\n0,text,50,8\n0,text,9,99\n"


def test_table_has_waits_shares_and_utilization(runyard: Runyard) -> None:
    result = runyard(*SMALL)
    assert result.exit_code == 0
    for words in ("median", "share/weight", "60 of 60 runs ended on 3 machines", "utilization"):
        assert words in result.stdout
    assert "runs ended 60/60" in result.stderr


def test_json_of_a_trace_counts_what_was_placed(runyard: Runyard, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(TRACE)
    result = runyard("simulate", "--nodes", "1", "--trace", "trace.csv", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["runs"], summary["ended"], summary["neverPlaced"]) == (3, 2, 1)
    # The two cannot run at the same time; the first in the order of names starts first.
    assert summary["virtualSeconds"] == 151.0
    assert summary["waits"][0]["longestSeconds"] == 50.0


def test_image_is_valid_svg_for_light_and_dark_pages(runyard: Runyard, tmp_path: Path) -> None:
    assert runyard(*SMALL, "--image", "queue.svg").exit_code == 0
    text = (tmp_path / "queue.svg").read_text()
    paths = ElementTree.fromstring(text).findall("{http://www.w3.org/2000/svg}path")  # noqa: S314
    assert [path.get("class") for path in paths] == ["used", "waiting"]
    assert "prefers-color-scheme:dark" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--trace", "missing.csv"), "missing.csv"),
        (("--trace", "bad.csv"), "bad.csv, line 2: duration_s is 'long'; try: a number from 0"),
        (("--trace", "bad.csv", "--runs", "5"), "--runs is for the synthetic load; try:"),
        (("--image", "no/such.svg"), "no is not a folder; try: create it first"),
    ],
)
def test_invalid_input_is_answered_with_a_suggestion(
    runyard: Runyard, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "bad.csv").write_text("submit_s,project,duration_s\n1,p,long\n")
    result = runyard("simulate", *arguments)
    assert result.exit_code != 0
    assert expected in result.stderr


def test_simulation_loads_no_torch_no_http_and_no_store() -> None:
    script = (
        "import sys; from runyard.cli.main import main; "
        "sys.argv = ['runyard', 'simulate', '--nodes', '1', '--runs', '1']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded:', *[name for name in sys.modules if name.split('.')[0] in "
        "('torch', 'ray', 'granian', 'sqlalchemy', 'httpx2') or "
        "name.startswith(('runyard.server.http', 'runyard.server.services', 'runyard.store'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded:"
