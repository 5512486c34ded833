"""docs/findings.md lists exactly the kinds of findings."""

from pathlib import Path

from runyard.datasets.findings import KINDS


def test_the_page_of_findings_is_the_table_of_kinds(repository: Path) -> None:
    page = (repository / "docs" / "findings.md").read_text()
    lines = page.partition("## Findings of a run")[0].splitlines()
    expected = [f"| `{code}` | {kind.severity} | {kind.fix} |" for code, kind in KINDS.items()]
    assert [line for line in lines if line.startswith("| `")] == expected
