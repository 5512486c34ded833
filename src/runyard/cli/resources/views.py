"""``runyard views``: saved views of the list of runs."""

from pathlib import Path

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.output import format_age, json_option, print_fields, print_json, print_table


@click.group()
def views() -> None:
    """Save, list and delete views: named filters of runs."""


@views.command("list")
@data_dir_option
@json_option
def list_views(data_dir: Path | None, as_json: bool) -> None:
    """List saved views, newest first."""
    with connect(data_dir) as client:
        found = list(client.views)
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (
            view.view_id,
            view.spec.name,
            view.spec.filter,
            view.spec.order_by,
            format_age(view.metadata.time_created),
        )
        for view in found
    ]
    print_table(("VIEW", "NAME", "FILTER", "ORDER", "AGE"), rows)


@views.command("get")
@click.argument("view_id", metavar="VIEW")
@data_dir_option
@json_option
def get_view(view_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Show a saved view.

    Example: `runyard views get VIEW`
    """
    with connect(data_dir) as client:
        view = client.views.get(view_id)
    if as_json:
        print_json(view)
        return
    print_fields(
        [
            ("View", view.view_id),
            ("Name", view.spec.name),
            ("Filter", view.spec.filter),
            ("Order", view.spec.order_by),
            ("Columns", ", ".join(view.spec.columns)),
        ]
    )


@views.command("save")
@click.argument("name")
@click.option("--filter", "filter_text", default="", help="Filter, such as 'condition:Failed'.")
@click.option("--sort", default="", metavar="FIELD", help="Order, such as -metric.iou.")
@click.option(
    "--column", "columns", multiple=True, help="Column of the Runs page; may be repeated."
)
@click.option("--id", "view_id", help="Id of the view; an existing view is replaced.")
@data_dir_option
@json_option
def save_view(
    name: str,
    filter_text: str,
    sort: str,
    columns: tuple[str, ...],
    view_id: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Save a view under a name and print its id.

    Example: `runyard views save "Failed this week" --filter "condition:Failed"`
    """
    spec = {"name": name, "filter": filter_text, "order_by": sort, "columns": list(columns)}
    with connect(data_dir) as client:
        view = client.views.save(spec, view_id=view_id)
    if as_json:
        print_json(view)
    else:
        click.echo(view.view_id)


@views.command("delete")
@click.argument("view_ids", nargs=-1, required=True, metavar="VIEW...")
@data_dir_option
def delete_views(view_ids: tuple[str, ...], data_dir: Path | None) -> None:
    """Delete saved views. The runs that they show are kept."""
    with connect(data_dir) as client:
        for view_id in view_ids:
            click.echo(f"deleted {client.views.delete(view_id).id}")
