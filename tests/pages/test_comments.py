"""Scripts and style sheets are sent without comments, and mean the same."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from runyard.server.pages import assets, comments

ESPREE = Path(__file__).parents[2] / "node_modules" / "espree" / "dist" / "espree.cjs"
READ_TOKENS = """
const { readFileSync } = require("fs");
const { tokenize } = require(process.argv[1]);
const files = JSON.parse(readFileSync(0, "utf8"));
const options = { ecmaVersion: 2024, sourceType: "module", loc: true };
const read = (text) => tokenize(text, options).map(({ value, loc }) => [value, loc.start.line]);
console.log(JSON.stringify(files.map((pair) => pair.map(read))));
"""


@pytest.mark.parametrize(
    ("script", "bare"),
    [
        ("a // b\nc /* d\n e */ f", "a \nc \n f"),
        ('  x = "// no"; // yes', '  x = "// no"; '),
        (r"x = 'it\'s // no' //", r"x = 'it\'s // no' "),
        ("x = `// ${a /* y */} /* no */`", "x = `// ${a  } /* no */`"),
        ("`${f(`//${{ a: 1 }.a}`)} //` //", "`${f(`//${{ a: 1 }.a}`)} //` "),
        ("x = y / 2; // z\nb = /[/*]'/g; // c", "x = y / 2; \nb = /[/*]'/g; "),
        ("return /'/.test(a) // b", "return /'/.test(a) "),
        ("/** @type {A} */ (b)", "  (b)"),
        ("a\n    // b\n    c", "a\n\nc"),
        ("`a\n    b`", "`a\n    b`"),
        ("`never ends // a", "`never ends // a"),
    ],
)
def test_comments_of_a_script_are_left_out(script: str, bare: str) -> None:
    assert comments.remove_from_script(script) == bare


def test_comments_of_a_style_sheet_are_left_out() -> None:
    style = "/* a\n*/ b { content: '/* c */'; }\n  d { e: url(//f); } /* g */"
    assert comments.remove_from_style(style) == (
        "\n b { content: '/* c */'; }\nd { e: url(//f); }  "
    )


def test_every_script_has_the_same_words_on_the_same_lines() -> None:
    node = shutil.which("node")
    if node is None or not ESPREE.exists():
        pytest.skip("needs node and espree: run scripts/assets")
    sources = {path.name: path.read_text() for path in assets.FOLDER.glob("*.js")}
    pairs = [(source, assets.load().files[name].body.decode()) for name, source in sources.items()]
    result = subprocess.run(
        [node, "-e", READ_TOKENS, str(ESPREE)],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        check=True,
    )
    tokens = json.loads(result.stdout)
    assert len(tokens) > 10
    for name, (before, after) in zip(sources, tokens, strict=True):
        assert before == after, name


def test_what_is_sent_is_smaller() -> None:
    for name in ("ry-chart.js", "live.js", "app.css"):
        body, source = assets.load().files[name].body, (assets.FOLDER / name).read_bytes()
        assert len(body) < len(source), name
        assert body.count(b"\n") == source.count(b"\n"), name
        assert b"/**" not in body, name
