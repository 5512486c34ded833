"""``runyard datasets``: import, check, preview and export of datasets.

``check`` uses the same code as the server's import and needs no instance.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.failures import EXIT_ERROR, EXIT_NOT_FOUND, EXIT_USAGE, CommandFailed
from runyard.cli.groups import NounGroup
from runyard.cli.ids import complete_datasets
from runyard.cli.output import (
    format_age,
    format_size,
    format_time,
    json_option,
    print_fields,
    print_json,
    print_table,
    to_single_line,
)
from runyard.cli.resources.selection import confirm
from runyard.datasets.options import (
    BOX_FORMS,
    BOX_UNITS,
    ON_BAD_BOX,
    BoxForm,
    BoxUnit,
    OnBadBox,
    ReadOptions,
)

if TYPE_CHECKING:
    from vi.api.resources.datasets.responses import DatasetImport, Finding, ImportReport

TYPES = ("phrase-grounding", "vqa", "freeform")
POLICIES = ("Warn", "RejectRow", "RejectFile", "RejectAll")
FORMATS_OUT = (
    *("ViFull", "ViJsonl", "Coco", "PascalVoc", "YoloDarknet", "YoloKerasPytorch"),
    *("CsvFourCorner", "CsvWidthHeight", "Parquet", "Conversations"),
)
SAMPLE = "sample:"
SHOWN = 10

format_option = click.option(
    "--format", default="auto", show_default=True, help="Format of the labels."
)
type_option = click.option(
    "--type",
    "dataset_type",
    type=click.Choice(TYPES),
    help="Type of the dataset. [default: type of the labels]",
)
on_error_option = click.option(
    "--on-error",
    type=click.Choice(POLICIES, case_sensitive=False),
    default="RejectRow",
    show_default=True,
    help="Policy for invalid rows: repair them if possible, skip them, skip their files, or reject "
    "the import.",
)
box_unit_option = click.option(
    "--box-unit",
    type=click.Choice(BOX_UNITS, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Unit of the numbers of a box: pixels, or fractions, percent or thousandths of the image; "
    "auto is what the format defines.",
)
box_form_option = click.option(
    "--box-form",
    type=click.Choice(BOX_FORMS, case_sensitive=False),
    default="auto",
    show_default=True,
    help="Meaning of the numbers of a box: two corners, or a corner with width and height; auto is "
    "what the format defines.",
)
on_bad_box_option = click.option(
    "--on-bad-box",
    type=click.Choice(ON_BAD_BOX, case_sensitive=False),
    default="reject",
    show_default=True,
    help="Policy for an invalid box: reject its row, or drop only the box.",
)
split_option = click.option(
    "--split",
    type=click.Choice(("keep", "ignore"), case_sensitive=False),
    default="keep",
    show_default=True,
    help="The data's own train, validation and test: keep them apart, or merge them.",
)


@click.group(cls=NounGroup)
def datasets() -> None:
    """Import, check, preview and export datasets."""


@datasets.command("import")
@click.argument("path")
@click.option("--name", help="Name of the new dataset. [default: name of the folder]")
@format_option
@type_option
@on_error_option
@box_unit_option
@box_form_option
@on_bad_box_option
@split_option
@click.option("--dataset", "dataset_id", help="Import into this dataset instead of a new one.")
@click.option("--resume", metavar="IMPORT_ID", help="Interrupted import of --dataset to resume.")
@data_dir_option
@json_option
def import_data(
    path: str,
    name: str | None,
    format: str,
    dataset_type: str | None,
    on_error: str,
    box_unit: str,
    box_form: str,
    on_bad_box: str,
    split: str,
    dataset_id: str | None,
    resume: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Import a folder, an archive or a table, and print the id of its dataset.

    PATH is a folder with images and labels in any supported format, a .zip, .parquet or .jsonl
    file, or a built-in sample such as sample:digits. Ctrl-C cancels the import. Findings are
    printed at the end and remain available (`runyard datasets report`); exit code 1 if nothing was
    accepted.
    """
    import vi

    with _open_source(path) as folder, connect(data_dir, is_patient=True) as client:
        try:
            imported = client.datasets.import_folder(
                folder,
                format=format,
                name=name
                or (
                    path.removeprefix(SAMPLE)
                    if path.startswith(SAMPLE) and not dataset_id
                    else None
                ),
                dataset_type=dataset_type,
                on_error=on_error,
                box_unit=box_unit,
                box_form=box_form,
                on_bad_box=on_bad_box,
                split=split,
                progress=_create_progress(),
                dataset_id=dataset_id,
                resume=resume,
            )
        except vi.ViImportFailedError as error:
            if error.imported is not None:
                if as_json:
                    print_json(error.imported.session)
                else:
                    _print_report(client.datasets.report(error.imported), err=True)
                    _print_skipped(error.imported.skipped)
            raise CommandFailed(
                _format_import_failure(error.message, error.details, path)
            ) from error
        if as_json:
            print_json(imported.session)
            return
        report = client.datasets.report(imported)
        click.echo(to_single_line(imported.summary()), err=True)
        _print_splits(report, err=True)
        if not report.rows_kept:
            _print_missing_labels(err=True)
        _print_groups(report, err=True)
        _print_skipped(imported.skipped)
        click.echo(imported.dataset_id)


@datasets.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@format_option
@type_option
@on_error_option
@box_unit_option
@box_form_option
@on_bad_box_option
@split_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write the report to.",
)
@json_option
def check_data(
    path: Path,
    format: str,
    dataset_type: str | None,
    on_error: str,
    box_unit: BoxUnit,
    box_form: BoxForm,
    on_bad_box: OnBadBox,
    split: str,
    html: Path | None,
    as_json: bool,
) -> None:
    """Check what an import would accept, without a server; exit code 1 if there are errors.

    PATH is a folder, an archive or a table, as in `runyard datasets import`.
    """
    import msgspec

    from runyard.datasets.ingest import check_folder
    from runyard.datasets.report import Report, render_page
    from vi.api.resources.datasets.responses import (
        DatasetImport,
        ImportFindings,
        ImportProgress,
        ImportStatus,
    )

    if not (path.is_dir() or path.is_file()):
        what = "is neither a folder nor a file" if path.exists() else "does not exist"
        raise CommandFailed(f"{path} {what}", exit_code=EXIT_NOT_FOUND)
    draw = _create_progress()
    report = Report()

    def show_progress(document: dict[str, Any]) -> None:
        counts = {key: value for key, value in document.items() if value is not None}
        progress, found = (
            msgspec.convert(counts, ImportProgress),
            msgspec.convert(counts, ImportFindings),
        )
        if callable(draw):
            draw(DatasetImport(status=ImportStatus(progress=progress, findings=found)))

    outcome = check_folder(
        path,
        dataset_type=dataset_type,  # type: ignore[arg-type]  # click allows no other
        format=format,
        on_error=on_error,  # type: ignore[arg-type]
        options=ReadOptions(box_unit=box_unit, box_form=box_form, on_bad_box=on_bad_box),
        split=split,  # type: ignore[arg-type]
        on_finding=report.add,
        on_progress=show_progress,
    )
    document = _build_report(report, outcome)
    if html is not None:
        summary = f"{outcome.decision}: {outcome.why}" if outcome.why else outcome.decision
        html.write_text(
            render_page(document, title=f"Check of {path.resolve().name}", outcome=summary),
            "utf-8",
        )
    if as_json:
        print_json(document)
    else:
        _print_report(document, kind=outcome.type)
    if outcome.decision != "Accepted" or document.errors or not document.rows_kept:
        raise click.exceptions.Exit(EXIT_ERROR)


@datasets.command("list")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of datasets.",
)
@data_dir_option
@json_option
def list_datasets(limit: int, data_dir: Path | None, as_json: bool) -> None:
    """List datasets, newest first."""
    from itertools import islice

    from vi.api.types import PaginationParams

    with connect(data_dir) as client:
        page = client.datasets.list(pagination=PaginationParams(page_size=min(limit, 1000)))
        found = list(islice(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (
            dataset.dataset_id,
            dataset.name,
            dataset.type,
            dataset.statistic.asset_total,
            dataset.statistic.annotation_total,
            format_size(dataset.size_bytes),
            format_age(dataset.create_date),
            dataset.version,
        )
        for dataset in found
    ]
    print_table(("DATASET", "NAME", "TYPE", "IMAGES", "RECORDS", "SIZE", "AGE", "VERSION"), rows)


@datasets.command("get")
@click.argument("dataset_id", shell_complete=complete_datasets)
@data_dir_option
@json_option
def get_dataset(dataset_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Show a dataset and its imports."""
    with connect(data_dir) as client:
        dataset = client.datasets.get(dataset_id)
        imports = client.datasets.imports.list(dataset_id).items
    if as_json:
        print_json(dataset)
        return
    counts = dataset.statistic
    print_fields(
        [
            ("Dataset", dataset.dataset_id),
            ("Name", dataset.name),
            ("Description", dataset.description),
            ("Type", dataset.type),
            ("Images", f"{counts.asset_total}, {counts.asset_annotated} of them with records"),
            ("Records", counts.annotation_total),
            ("Size", format_size(dataset.size_bytes)),
            ("Version", dataset.version),
            ("Created", format_time(dataset.create_date)),
            ("Changed", format_time(dataset.metadata.last_updated)),
            (
                "Attributes",
                ", ".join(f"{key}={value}" for key, value in dataset.metadata.attributes.items()),
            ),
        ]
    )
    if imports:
        click.echo()
        print_table(
            ("IMPORT", "STATE", "FORMAT", "ROWS", "ERRORS", "WARNINGS", "AGE"),
            [_row(one) for one in imports],
        )


@datasets.command("versions")
@click.argument("dataset_id", shell_complete=complete_datasets)
@data_dir_option
@json_option
def list_versions(dataset_id: str, data_dir: Path | None, as_json: bool) -> None:
    """List the versions of a dataset, newest first; runs are pinned to them."""
    with connect(data_dir) as client:
        found = list(client.datasets.versions.list(dataset_id, {"page_size": 100}).all_items())
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (
            one.version_id,
            one.number,
            one.assets,
            one.records,
            format_size(one.size_bytes),
            format_age(one.metadata.time_created),
        )
        for one in found
    ]
    print_table(("VERSION", "NUMBER", "IMAGES", "RECORDS", "SIZE", "AGE"), rows)


@datasets.command("report")
@click.argument("dataset_id", shell_complete=complete_datasets)
@click.argument("import_id", required=False)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file to write the report to.",
)
@click.option("--all", "shows_all", is_flag=True, help="Print every finding as JSON, one per line.")
@data_dir_option
@json_option
def print_report(
    dataset_id: str,
    import_id: str | None,
    html: Path | None,
    shows_all: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show the findings of an import: counts by code, and the first ones with file, line, field,
    cause and fix.

    Default for IMPORT_ID: the newest import of the dataset.
    """
    with connect(data_dir) as client:
        if html is not None:
            html.write_text(client.datasets.report_html(dataset_id, import_id), "utf-8")
            click.echo(html)
        elif shows_all:
            for found in client.datasets.findings(
                dataset_id, import_id, {"page_size": 1000}
            ).all_items():
                print_json(found)
        elif as_json:
            print_json(client.datasets.report(dataset_id, import_id))
        else:
            _print_report(
                client.datasets.report(dataset_id, import_id),
                kind=client.datasets.get(dataset_id).type,
            )


@datasets.command("preview")
@click.argument("dataset_id", shell_complete=complete_datasets)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("preview.png"),
    show_default=True,
    help="PNG file to write.",
)
@click.option(
    "--count", default=12, show_default=True, type=click.IntRange(1, 100), help="Number of images."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the random selection.")
@click.option("--version", help="Version of the dataset. [default: the newest]")
@data_dir_option
def preview(
    dataset_id: str, out: Path, count: int, seed: int, version: str | None, data_dir: Path | None
) -> None:
    """Write a contact sheet of images with their boxes, phrases, questions and answers."""
    with connect(data_dir, is_patient=True) as client:
        click.echo(
            client.datasets.preview(dataset_id, out, count=count, seed=seed, version=version)
        )


@datasets.command("export")
@click.argument("dataset_id", shell_complete=complete_datasets)
@click.option(
    "--format",
    type=click.Choice(FORMATS_OUT, case_sensitive=False),
    default="ViFull",
    show_default=True,
    help="Format of the export.",
)
@click.option(
    "--split", "split_ratio", type=click.FloatRange(0, 1), help="Share of images in training/."
)
@click.option(
    "--pictures/--no-pictures", default=True, show_default=True, help="Include the images."
)
@click.option(
    "--pixels",
    is_flag=True,
    help="Boxes of the CSV formats in pixels instead of relative to the image.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("datasets"),
    show_default=True,
    help="Target folder; the dataset is written to a subfolder.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing export.")
@data_dir_option
@json_option
def export_data(
    dataset_id: str,
    format: str,
    split_ratio: float | None,
    pictures: bool,
    pixels: bool,
    out: Path,
    overwrite: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Export a dataset in another format and print the path of the export."""
    settings = {"format": format, "options": {"split_ratio": split_ratio, "normalized": not pixels}}
    with connect(data_dir, is_patient=True) as client:
        written = client.datasets.download(
            dataset_id,
            annotations_only=not pictures,
            export_settings=settings,
            save_dir=out,
            overwrite=overwrite,
            show_progress=not as_json,
        )
    if as_json:
        print_json({"datasetId": written.dataset_id, "path": written.save_path, "format": format})
    else:
        click.echo(written.save_path)


@datasets.command("delete")
@click.argument(
    "dataset_ids",
    shell_complete=complete_datasets,
    nargs=-1,
    required=True,
    metavar="DATASET_ID...",
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Print the datasets without deleting them.")
@data_dir_option
def delete_datasets(
    dataset_ids: tuple[str, ...], yes: bool, dry_run: bool, data_dir: Path | None
) -> None:
    """Delete datasets with their images, records and versions permanently."""
    with connect(data_dir, is_patient=True) as client:
        for dataset_id in dataset_ids:
            if dry_run or not yes:
                found = client.datasets.get(dataset_id)
                described = to_single_line(
                    f"{found.name} ({dataset_id}) with {found.statistic.asset_total} images, "
                    f"{found.statistic.annotation_total} records"
                )
            if dry_run:
                click.echo(f"would delete {described}")
                continue
            if not yes:
                confirm(f"Delete {described}?")
            client.datasets.delete(dataset_id)
            click.echo(f"deleted {dataset_id}")


@contextmanager
def _open_source(path: str) -> Iterator[Path]:
    """Yield the path to import; a built-in sample is written to a temporary folder."""
    if not path.startswith(SAMPLE):
        yield Path(path)
        return
    import tempfile

    from runyard.datasets import samples

    name = path.removeprefix(SAMPLE)
    if name not in samples.SAMPLES:
        raise CommandFailed(
            f"sample {name!r} does not exist; try: one of {', '.join(sorted(samples.SAMPLES))}",
            exit_code=EXIT_USAGE,
        )
    with tempfile.TemporaryDirectory(prefix="runyard-sample-") as folder:
        samples.write(name, Path(folder))
        yield Path(folder)


def _create_progress() -> Any:
    """Return the progress argument: True on a terminal, else a function that prints lines."""
    import sys

    if sys.stderr.isatty():
        return True
    from runyard.cli.progress import PhaseLines

    return PhaseLines().update


def _build_report(report: Any, outcome: Any) -> "ImportReport":
    """Return the report that the server would create for a local check."""
    import msgspec

    from vi.api.resources.datasets.responses import FindingGroup, ImportReport

    document = report.document()
    counts = outcome.counts
    return ImportReport(
        format=outcome.format,
        why=outcome.why,
        images=counts.get("images", 0),
        rows=counts.get("rows", 0),
        rows_kept=counts.get("rowsKept", 0),
        splits=counts.get("splits", {}),
        errors=document["errors"],
        warnings=document["warnings"],
        groups=msgspec.convert(document["codes"], list[FindingGroup]),
    )


def _print_report(report: "ImportReport", *, kind: str | None = None, err: bool = False) -> None:
    """Print the counts of accepted data, then the findings."""
    from vi.api._display import format_count, format_rows

    rows = format_rows(report.rows_kept, report.rows)
    what = ", ".join(filter(None, (report.format or "no labels", kind)))
    defects = f"{format_count(report.errors, 'error')}, {format_count(report.warnings, 'warning')}"
    click.echo(
        f"{format_count(report.images, 'image')}, {rows} ({to_single_line(what)}); {defects}",
        err=err,
    )
    _print_splits(report, err=err)
    if report.why:
        click.echo(f"Nothing was accepted: {to_single_line(report.why)}", err=err)
    elif not report.rows_kept:
        _print_missing_labels(err=err)
    _print_groups(report, err=err)


def _print_missing_labels(*, err: bool) -> None:
    click.echo(
        "No labels were found: an import stores the images, and a run needs labels as well.",
        err=err,
    )


def _print_splits(report: "ImportReport", *, err: bool) -> None:
    """Print how many images each of the data's own splits has, if it has any."""
    from runyard.datasets.splits import format_counts

    if counts := format_counts(report.splits):
        click.echo(f"split: {counts}", err=err)


def _print_groups(report: "ImportReport", *, err: bool) -> None:
    """Print counts by code, then the first findings of each code, errors before warnings."""
    groups = sorted(report.groups, key=lambda group: group.severity != "error")
    if groups:
        click.echo(err=err)
        table = [(group.code, group.severity, f"{group.count:,}", group.cure) for group in groups]
        print_table(("CODE", "SEVERITY", "COUNT", "FIX"), table, err=err)
    for group in groups:
        more = f", the first {len(group.first)}" if group.count > len(group.first) else ""
        click.echo(f"\n{group.code} ({group.count:,}{more}): {to_single_line(group.cure)}", err=err)
        for found in group.first:
            fix = "" if found.cure == group.cure else f"; fix: {to_single_line(found.cure)}"
            click.echo(f"  {_finding_line(found)}{fix}", err=err)


def _print_skipped(skipped: "Sequence[Finding]") -> None:
    """Print the first files of an import that were not sent."""
    if skipped:
        more = f" ({len(skipped):,}, the first {SHOWN})" if len(skipped) > SHOWN else ""
        click.echo(f"\nNot uploaded{more}:", err=True)
    for found in skipped[:SHOWN]:
        click.echo(f"  {_finding_line(found)}; fix: {to_single_line(found.cure)}", err=True)


def _finding_line(found: "Finding") -> str:
    location = found.file if found.line is None else f"{found.file}:{found.line}"
    field = f" {found.field}" if found.field else ""
    value = f" [{found.value}]" if found.value else ""
    return to_single_line(f"{location}{field}: {found.cause}{value}")


def _row(imported: "DatasetImport") -> tuple[object, ...]:
    status = imported.status
    return (
        imported.import_id,
        _state(imported),
        status.format,
        f"{status.progress.rows_kept}/{status.progress.rows}",
        status.findings.errors,
        status.findings.warnings,
        format_age(imported.metadata.time_created),
    )


def _state(imported: "DatasetImport") -> str:
    if imported.has_failed:
        reasons = {condition.reason for condition in imported.status.conditions}
        return "Cancelled" if "CancelledByUser" in reasons else "Failed"
    return "Succeeded" if imported.is_over else "Running"


def _format_import_failure(message: str, details: dict[str, Any], path: str) -> str:
    dataset_id = details.get("datasetId")
    command = f"runyard datasets import {path} --dataset {dataset_id}"
    return (
        f"{message}\nfull report: runyard datasets report {dataset_id}\nafter fixing the data: "
        f"{command}"
    )
