"""The command scripts/style-report.

Without options it prints a table of figures. ``--check`` compares this repository with
``style-limits.toml`` and names each offender with file and line. ``--lower`` lowers the limits
after an improvement.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from style.docs import measure_docs
from style.figures import ROOT, TITLES, display_path
from style.limits import LIMITS, find_violations, lower_limits, read_limits, remove_allowed
from style.sources import measure_folders


def format_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Return one row for each figure and one column for each set of figures."""
    rows = [["", *columns]]
    metrics = list(dict.fromkeys(metric for figures in columns.values() for metric in figures))
    for metric in metrics:
        cells = [figures.get(metric) for figures in columns.values()]
        rows.append(
            [TITLES[metric], *("" if cell is None else f"{round(cell, 1):,}" for cell in cells)]
        )
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(pairs)
        )
        for pairs in (zip(row, widths, strict=True) for row in rows)
    )


def list_pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def check_repository(*, lower: bool) -> int:
    """Compare this repository with its limits; return the exit status."""
    text = LIMITS.read_text("utf-8")
    report = remove_allowed(measure_folders([ROOT / "src"]), read_limits(text).allowed_identifiers)
    doc_figures, doc_offenders = measure_docs(list_pages())
    tests = measure_folders([ROOT / name for name in ("tests", "benchmarks", "examples")])
    figures = report.compute_figures() | doc_figures | {"test_dialect": len(tests.dialect)}
    lowered = lower_limits(text, figures, report.functions)
    if lower:
        LIMITS.write_text(lowered, "utf-8")
        text = lowered
    elif lowered != text:
        print(
            "style-report: some limits can be lowered; run: scripts/style-report --lower",
            file=sys.stderr,
        )
    offenders = report.list_offenders() | doc_offenders | {"test_dialect": tests.dialect}
    violations = find_violations(figures, offenders, report.functions, read_limits(text))
    print(*violations, sep="\n", end="\n" if violations else "", file=sys.stderr)
    return 1 if violations else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/style-report", description="Measure how code and docs read."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        help="source folders, each a root of imports (default: src)",
    )
    parser.add_argument(
        "--docs",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="folders of Markdown",
    )
    parser.add_argument(
        "--list", metavar="METRIC", help="print the offenders of one metric, such as participles"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare this repository with scripts/style-limits.toml",
    )
    parser.add_argument(
        "--lower", action="store_true", help="lower the limits to the present figures, then check"
    )
    options = parser.parse_args(arguments)
    if options.check or options.lower:
        return check_repository(lower=options.lower)
    folders = options.folders or [ROOT / "src"]
    pages = [page for folder in options.docs for page in sorted(folder.rglob("*.md"))]
    if not options.folders and not options.docs:
        pages = list_pages()
    doc_figures, doc_offenders = measure_docs(pages)
    if options.list:
        offenders = measure_folders(folders).list_offenders() | doc_offenders
        if options.list not in offenders:
            parser.error(f"no metric is named {options.list}; try one of: {', '.join(offenders)}")
        print(*offenders[options.list], sep="\n")
        return 0
    columns = {
        display_path(folder): measure_folders([folder]).compute_figures() for folder in folders
    }
    if pages:
        columns["docs"] = doc_figures
    print(json.dumps(columns, indent=2) if options.json else format_table(columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
