"""``runyard open`` and ``runyard sessions``: the pages, and the browsers that are signed in."""

import os
import sys
import webbrowser
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runyard.cli.connection import connect, data_dir_option
from runyard.cli.groups import NounGroup
from runyard.cli.output import format_age, json_option, print_json, print_table

if TYPE_CHECKING:
    import vi
    from vi.api.resources.sessions.responses import SignInLink

HOME = "/ui/runs"
MOST_AGENT = 60


@click.command("open")
@click.argument("path", default=HOME, required=False, metavar="[PATH]")
@click.option("--print", "only_prints", is_flag=True, help="Print the link; open no browser.")
@data_dir_option
@json_option
def open_pages(path: str, only_prints: bool, data_dir: Path | None, as_json: bool) -> None:
    """Open the pages in a browser, signed in with this key.

    Without a browser on this machine, the link is printed. It works once, within ten minutes.

    Examples: `runyard open`, `runyard open /ui/runs/RUN_ID`, `runyard open --print`
    """
    with connect(data_dir) as client:
        open_page(client, path, only_prints=only_prints, as_json=as_json)


@click.group(cls=NounGroup)
def sessions() -> None:
    """List browsers that are signed in, and sign them out.

    Requires an admin's key. A session ends after 12 hours, with its key, or when it is revoked.
    """


@sessions.command("list")
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of sessions.",
)
@data_dir_option
@json_option
def list_sessions(limit: int, data_dir: Path | None, as_json: bool) -> None:
    """List browsers that are signed in, newest first."""
    with connect(data_dir) as client:
        page = client.sessions.list({"page_size": min(limit, 1000)})
        found = list(islice(page.all_items(), limit))
    if as_json:
        print_json({"items": found})
        return
    rows = [
        (
            session.session_id,
            session.key_id,
            session.address,
            format_age(session.metadata.time_created),
            format_age(session.last_used),
            session.agent[:MOST_AGENT],
        )
        for session in found
    ]
    print_table(("SESSION", "KEY", "ADDRESS", "AGE", "LAST USED", "BROWSER"), rows)


@sessions.command("revoke")
@click.argument("session_ids", metavar="SESSION...", nargs=-1, required=True)
@data_dir_option
@json_option
def revoke_sessions(session_ids: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:
    """Sign browsers out at once.

    Example: `runyard sessions revoke 4fY0dZkPq3LmXw81`
    """
    with connect(data_dir, is_patient=True) as client:
        for session_id in session_ids:
            revoked = client.sessions.revoke(session_id)
            if as_json:
                print_json(revoked)
            else:
                click.echo(f"signed out {session_id}")


def open_page(
    client: "vi.Client", path: str, *, only_prints: bool = False, as_json: bool = False
) -> None:
    """Open a page in a browser, signed in; print the link where there is no browser."""
    link = create_link(client, path)
    if as_json:
        print_json(link)
        return
    if not only_prints and _has_browser() and webbrowser.open(link.url):
        click.echo(f"opened {client.endpoint.rstrip('/')}{path} in a browser")
        return
    click.echo(link.url)


def create_link(client: "vi.Client", path: str = HOME) -> "SignInLink":
    """Create a link that a browser can open without a warning about the certificate.

    On the server's own machine the client connects to a loopback address, which only the
    certificate itself identifies; a browser compares names.
    """
    from msgspec.structs import replace

    from runyard.cli.instance.instance import find_named_endpoint

    link = client.sessions.create_link(path)
    named = find_named_endpoint(client)
    return replace(link, url=named + link.url.removeprefix(client.endpoint))


def _has_browser() -> bool:
    """Return whether this machine shows windows. A browser in a terminal could not run pages."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
