"""A report counts everything, shows the first of each kind, and escapes what it quotes."""

import re

import msgspec

from runyard.datasets.findings import Finding, make_finding
from runyard.datasets.report import Report, format_location, render_page
from vi.api.resources.datasets.responses import FindingGroup, ImportReport


def make_findings(count: int) -> list[Finding]:
    boxes = [
        make_finding("BoxClipped", file="rows.csv", line=n, field="xmin", cause="over the edge")
        for n in range(count)
    ]
    return [*boxes, make_finding("ImageBroken", file="a.png", cause="zero")]


def make_report(findings: list[Finding], **counts: int) -> ImportReport:
    report = Report(findings)
    return ImportReport(
        errors=report.tally.errors,
        warnings=report.tally.warnings,
        groups=msgspec.convert(report.document()["codes"], list[FindingGroup]),
        **counts,  # type: ignore[arg-type]
    )


def test_counts_include_all_findings_and_details_only_the_first() -> None:
    document = Report(make_findings(1000), first=3).document()
    assert (document["errors"], document["warnings"]) == (1, 1000)
    assert document["byCode"] == {"BoxClipped": 1000, "ImageBroken": 1}
    assert [(code["code"], code["count"], len(code["first"])) for code in document["codes"]] == [
        ("ImageBroken", 1, 1),
        ("BoxClipped", 1000, 3),
    ]
    assert document["codes"][1]["first"][2]["line"] == 2
    assert msgspec.json.decode(msgspec.json.encode(document)) == document


def test_the_page_escapes_everything_and_loads_nothing() -> None:
    evil = '</td><script>alert(1)</script><img src="http://x/" onerror=y>'
    found = make_finding("ImageMissing", file=evil, line=3, field=evil, cause=evil, value=evil)
    format_value = render_page(make_report([found]), title=evil, outcome=evil)
    tags = {tag.lower() for tag in re.findall(r"<\s*/?\s*([a-zA-Z!]+)", format_value)}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "object", "svg", "form", "base"})
    assert not re.search(r"<[^>]*\b(?:src|onerror)\s*=", format_value)
    assert "default-src 'none'" in format_value
    assert "&lt;script&gt;" in format_value


def test_the_page_shows_findings_with_location_and_fix() -> None:
    format_value = render_page(
        make_report(make_findings(9), images=12, rows=30, rows_kept=28),
        title="shelves",
        outcome="Accepted",
    )
    for text in (
        "shelves",
        "12 images and 28 of 30 rows accepted, 2 rejected;",
        "1 errors and 9 warnings",
        "the first 5 of 9",
        "rows.csv:0",
    ):
        assert text in format_value
    assert "save the image again" in format_value


def test_the_fix_of_a_finding_is_shown_where_it_differs_from_the_first() -> None:
    fixes = ("--format Coco", "--format Coco", "--format <VOC>")
    found = [make_finding("FormatUnknown", file="a", cause="c", fix=fix) for fix in fixes]
    report = make_report(found)
    assert report.groups[0].cure == "--format Coco"
    page = render_page(report, title="x", outcome="Rejected")
    assert page.count("--format Coco") == 1
    assert page.count("Fix: --format &lt;VOC&gt;") == 1


def test_an_empty_report_is_rendered() -> None:
    assert "0 errors and 0 warnings" in render_page(make_report([]), title="x", outcome="Accepted")
    assert Report().document() == {"errors": 0, "warnings": 0, "byCode": {}, "codes": []}


def test_a_location_is_file_line_and_field() -> None:
    assert format_location(make_finding("ImageMissing", file="a", cause="")) == "a"
    assert (
        format_location(make_finding("ImageMissing", file="a", cause="", field="b[1]")) == "a b[1]"
    )
