"""``runyard flows``: saved flows, and validation of flow files without a server.

``check``, ``plan`` and ``schema`` use the same code as the server. They need no instance unless the
flow is given by its id.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.groups import NounGroup
from runyard.cli.ids import complete_flows
from runyard.cli.output import (
    format_age,
    format_time,
    json_option,
    print_fields,
    print_json,
    print_table,
    to_single_line,
)
from runyard.cli.resources.flow_files import (
    apply_assignments,
    is_file_name,
    load_flow,
    read_flow_file,
    set_option,
)
from runyard.cli.resources.selection import confirm
from runyard.cli.run_findings import print_findings


@click.group(cls=NounGroup)
def flows() -> None:
    """Save, validate and inspect flows (training configurations)."""


@flows.command("list")
@click.option(
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of flows.",
)
@data_dir_option
@json_option
def list_flows(limit: int, data_dir: Path | None, as_json: bool) -> None:
    """List saved flows."""
    from itertools import islice

    from vi.api.types import PaginationParams

    with connect(data_dir) as client:
        page = client.flows.list(pagination=PaginationParams(page_size=min(limit, 1000)))
        found = list(islice(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
    else:
        rows = [
            (
                flow.flow_id,
                flow.spec.name,
                format_age(flow.metadata.time_created),
                ", ".join(b.block for b in flow.spec.blocks),
            )
            for flow in found
        ]
        print_table(("FLOW", "NAME", "AGE", "BLOCKS"), rows)


@flows.command("get")
@click.argument("flow_id", shell_complete=complete_flows)
@data_dir_option
@json_option
def get_flow(flow_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Show a flow with its content."""
    with connect(data_dir) as client:
        flow = client.flows.get(flow_id)
    if as_json:
        print_json(flow)
        return
    print_fields(
        [
            ("Flow", flow.flow_id),
            ("Name", flow.spec.name),
            ("Created", format_time(flow.metadata.time_created)),
            ("Changed", format_time(flow.metadata.last_updated)),
            ("Generation", flow.metadata.generation),
        ]
    )
    _print_indented(flow.spec)


@flows.command("accelerators")
@click.argument("flow_id", shell_complete=complete_flows)
@data_dir_option
@json_option
def list_accelerators(flow_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Show whether a run of the flow fits into the memory of each available accelerator."""
    with connect(data_dir) as client:
        found = client.flows.get_accelerators(flow_id)
    if as_json:
        print_json(found)
    elif not found.items:
        click.echo(
            "no machine has reported an accelerator recently; try: check that a controller runs",
            err=True,
        )
    else:
        print_table(
            ("ACCELERATOR", "COUNT", "MEMORY", "VERDICT", "REASON"),
            [
                _accelerator_row(item, configuration)
                for item in found.items
                for configuration in item.configurations
            ],
        )


@flows.command("create")
@click.argument("file", required=False)
@set_option
@data_dir_option
@json_option
def create_flow(
    file: str | None, assignments: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """Save the flow in FILE (.yaml or .json), or the default flow, and print its id."""
    with connect(data_dir) as client:
        flow = client.flows.create(spec=apply_assignments(load_flow(client, file), assignments))
    if as_json:
        print_json(flow)
    else:
        click.echo(flow.flow_id)


@flows.command("delete")
@click.argument(
    "flow_ids", shell_complete=complete_flows, nargs=-1, required=True, metavar="FLOW_ID..."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Print the flows without deleting them.")
@data_dir_option
def delete_flows(
    flow_ids: tuple[str, ...], yes: bool, dry_run: bool, data_dir: Path | None
) -> None:
    """Delete flows. Runs created from them keep their own copy."""
    with connect(data_dir) as client:
        for flow_id in flow_ids:
            if dry_run or not yes:
                name = to_single_line(client.flows.get(flow_id).spec.name)
            if dry_run:
                click.echo(f"would delete {flow_id} {name}")
                continue
            if not yes:
                confirm(f"Delete the flow {name} ({flow_id})?")
            click.echo(f"deleted {client.flows.delete(flow_id).id}")


@flows.command("check")
@click.argument("flow", metavar="FILE|FLOW_ID")
@set_option
@data_dir_option
def check_flow(flow: str, assignments: tuple[str, ...], data_dir: Path | None) -> None:
    """Validate a flow; print one line per problem and exit with 1 if it is invalid."""
    from runyard.flows import validate

    spec = validate(_load_flow(flow, assignments, data_dir))
    click.echo(f"{spec.name}: no problems")


@flows.command("plan")
@click.argument("flow", required=False, metavar="[FILE|FLOW_ID]")
@set_option
@data_dir_option
@json_option
def plan_flow(
    flow: str | None, assignments: tuple[str, ...], data_dir: Path | None, as_json: bool
) -> None:
    """Show a flow with every default filled in, as a run would use it."""
    from runyard.flows import build_flow_document, resolve, validate
    from runyard.flows.blocks import BUILT_IN_DATASETS
    from runyard.flows.tiny import find_tiny_images

    resolved = resolve(validate(_load_flow(flow, assignments, data_dir)))
    document = build_flow_document(resolved, for_published_client=False)
    if as_json:
        print_json(document)
        return
    _print_indented(document)
    is_uploaded = resolved.dataset.dataset_id not in BUILT_IN_DATASETS
    if (finding := find_tiny_images(resolved, is_uploaded=is_uploaded)) is not None:
        print_findings([finding])


@flows.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of flows, for completion and validation in editors."""
    from runyard.flows import schema

    _print_indented(schema())


def _accelerator_row(item: Any, configuration: Any) -> tuple[object, ...]:
    spec = item.accelerator.spec
    memory_gib = spec.resources.get("memoryGiB")
    memory = "unknown" if memory_gib is None else f"{memory_gib:g} GiB"
    name = spec.labels.get("accelerator", item.accelerator.training_accelerator_id)
    return (
        name,
        int(spec.resources.get("count", 1)),
        memory,
        configuration.action,
        configuration.reason,
    )


def _load_flow(given: str | None, assignments: Sequence[str], data_dir: Path | None) -> Any:
    """Return the flow of a file name or a flow id; only an id needs a server."""
    if given is not None and is_file_name(given):
        return apply_assignments(read_flow_file(given), assignments)
    if given is None:
        from runyard.cli.resources.flow_files import DEFAULT_FLOW

        return apply_assignments(DEFAULT_FLOW, assignments)
    with connect(data_dir) as client:
        return apply_assignments(load_flow(client, given), assignments)


def _print_indented(document: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
