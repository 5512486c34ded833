"""Actions of the page *Runs*: kill, tag and delete selected runs, save views, start the first run.

Each action on runs is asked twice: first without ``confirmed``, for a dialog that says what will
happen, then with it. Both ask the same service, the first time for a dry run.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runyard.server.http.request import Request, get_actor, get_services
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.forms import Form, parse_form
from runyard.server.pages.runs import table
from runyard.server.pages.runs.rows import (
    ListState,
    Snippet,
    ViewLink,
    quote_python,
    write_action_snippet,
)
from runyard.server.pages.views import format_count, format_iso
from runyard.server.services import documents
from runyard.server.services.errors import Refusal
from runyard.server.services.runs import bulk_runs, runs
from runyard.server.services.runs.filters import parse_filter
from runyard.server.services.saved_views import VIEW, check_spec
from runyard.server.services.validation import check_id
from vi.api.resources.runs.responses import Run, RunOutcome, RunOutcomes
from vi.api.resources.views.responses import ViewSpec

MOST_SHOWN = 100  # refused runs, and ids of a receipt


class ViewsMenu(msgspec.Struct, frozen=True, kw_only=True):
    """The menu of saved views."""

    state: ListState
    views: tuple[ViewLink, ...]
    may_change: bool


@dataclass(frozen=True)
class Selection:
    """The runs of a form: those with these ids, or all that match a filter."""

    ids: tuple[str, ...]
    q: str
    is_all: bool

    def get_arguments(self) -> dict[str, Any]:
        """Return the arguments of the services."""
        if self.is_all:
            return {"ids": None, "filter": parse_filter(self.q)}
        return {"ids": list(self.ids), "filter": None}

    def keep_accepted(self, outcomes: RunOutcomes) -> "Selection":
        """Return the selection without the runs that an action does not apply to."""
        ids = tuple(item.run_id for item in list_accepted(outcomes))
        return Selection(() if self.is_all else ids, self.q, self.is_all)

    def write_snippet(self, verb: str, python: Sequence[str] = (), **options: str) -> Snippet:
        """Return the same action in Python and as a command."""
        return write_action_snippet(
            verb, self.ids, self.q if self.is_all else None, python, **options
        )


class Refused(msgspec.Struct, frozen=True):
    """A run that an action does not apply to, and why."""

    id: str
    message: str


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """The dialog of an action: what it will do, or has done."""

    verb: str
    title: str
    lines: tuple[str, ...]
    refused: tuple[Refused, ...]
    refused_text: str
    snippet: Snippet
    q: str
    is_all: bool
    ids: tuple[str, ...] = ()
    can_act: bool = False
    button: str = ""
    way_out: str = "Keep them"
    keys: tuple[str, ...] = ()
    receipt: str = ""
    has_more: bool = False
    at_once: str = format_count(bulk_runs.MOST)


async def kill_runs(request: Request) -> Response:
    """Kill the selected runs, or say what that would do."""
    form = await parse_form(request)
    selection, is_confirmed = read_selection(form), is_set(form, "confirmed")
    grace_s = read_grace(form)
    outcomes = await bulk_runs.kill(
        get_services(request),
        get_actor(request),
        grace_s=grace_s,
        dry_run=not is_confirmed,
        **selection.get_arguments(),
    )
    grace = {} if grace_s is None else {"grace": f"{grace_s:g}"}
    python = [] if grace_s is None else [f"grace_s={grace_s:g}"]
    if is_confirmed:
        snippet = selection.write_snippet("kill", python, **grace)
        title, lines = describe_killed(count_conditions(outcomes))
        return show_result(request, "kill", selection, outcomes, snippet, title=title, lines=lines)
    outcomes = refuse_ended(outcomes)
    snippet = selection.keep_accepted(outcomes).write_snippet("kill", python, **grace)
    title, lines = describe_kill(count_conditions(outcomes))
    return show_confirmation(
        request, "kill", selection, outcomes, snippet, title=title, lines=lines
    )


def refuse_ended(outcomes: RunOutcomes) -> RunOutcomes:
    """Return outcomes in which a run that was killed before, and has ended, is refused as well."""
    items = [
        RunOutcome(
            run_id=item.run_id, outcome="Refused", code="RunFinished", message="was killed before"
        )
        if item.condition is not None and item.condition.is_final
        else item
        for item in outcomes.items
    ]
    return RunOutcomes(items=items, more=outcomes.more)


def count_conditions(outcomes: RunOutcomes) -> Counter[str]:
    """Return how many of the runs that an action applies to have each condition."""
    return Counter(item.condition.value for item in list_accepted(outcomes) if item.condition)


def describe_kill(counts: Counter[str]) -> tuple[str, list[str]]:
    """Return what a kill would do, as a title and further sentences."""
    running, pending, lines = counts["Running"], counts["Pending"], []
    if running:
        saves = pick_word(running, "saves a checkpoint, then stops", "save checkpoints, then stop")
        are = pick_word(running, "is", "are")
        lines.append(f"{count_runs(running)} {are} running: {saves} within the time below.")
    if pending:
        waits = pick_word(pending, "waits and is", "wait and are")
        lines.append(f"{count_runs(pending)} {waits} canceled at once.")
    total = counts.total()
    return f"Kill {count_runs(total)}?" if total else "Nothing to kill", lines


def describe_killed(counts: Counter[str]) -> tuple[str, list[str]]:
    """Return what a kill has done."""
    total, ended, lines = counts.total(), counts["Cancelled"], []
    if ended:
        lines.append(f"{count_runs(ended)} had not started and ended at once.")
    if stopping := total - ended:
        saves = pick_word(stopping, "saves and stops", "save and stop")
        lines.append(f"{count_runs(stopping)} {saves} now; the table shows when.")
    return f"{count_runs(total)} killed" if total else "No run was killed", lines


async def delete_runs(request: Request) -> Response:
    """Delete the selected runs, or say what that would do."""
    form = await parse_form(request)
    selection, is_confirmed = read_selection(form), is_set(form, "confirmed")
    services, actor = get_services(request), get_actor(request)
    outcomes = await bulk_runs.delete(
        services, actor, dry_run=not is_confirmed, **selection.get_arguments()
    )
    snippet = selection.write_snippet("delete")
    accepted = list_accepted(outcomes)
    if is_confirmed:
        title = f"{count_runs(len(accepted))} deleted" if accepted else "No run was deleted"
        lines = ["They are gone from every list; the disk space is free within a minute."]
        now = format_iso(services.clock.now_ms())
        receipt = "\n".join([f"deleted {now} by {actor.name}", *(item.run_id for item in accepted)])
        return show_result(
            request, "delete", selection, outcomes, snippet, title=title, lines=lines,
            receipt=receipt if accepted else "",
        )  # fmt: skip
    ids = [item.run_id for item in accepted]
    open_runs = sum(not is_final(run) for run in table.read_runs(request, ids))
    lines = ["Logs, metrics, checkpoints and downloads of these runs are removed for good."]
    if open_runs:
        have = pick_word(open_runs, "has not ended and is", "have not ended and are")
        lines.append(f"{count_runs(open_runs)} of them {have} killed without saving.")
    title = f"Delete {count_runs(len(accepted))}?" if accepted else "Nothing to delete"
    return show_confirmation(
        request, "delete", selection, outcomes, snippet, title=title, lines=lines
    )


async def tag_runs(request: Request) -> Response:
    """Set or remove an attribute of the selected runs, or ask which."""
    form = await parse_form(request)
    selection, is_confirmed = read_selection(form), is_set(form, "confirmed")
    key, value = form.text("key").strip(), form.text("value").strip()
    change = {key: None if is_set(form, "remove") else value} if key else {}
    attributes = change if is_confirmed else {}
    outcomes = await bulk_runs.tag(
        get_services(request),
        get_actor(request),
        attributes=attributes,
        dry_run=not is_confirmed,
        **selection.get_arguments(),
    )
    snippet = write_tag_snippet(selection, change or {"owner": "kim"})
    accepted = list_accepted(outcomes)
    if is_confirmed:
        done = "removed from" if is_set(form, "remove") else f"= {value or '(empty)'} set on"
        title = f"{key} {done} {count_runs(len(accepted))}" if accepted else "No run was changed"
        return show_result(request, "tag", selection, outcomes, snippet, title=title, lines=[])
    found = table.read_runs(request, [item.run_id for item in accepted[:MOST_SHOWN]])
    keys = sorted({name for run in found for name in run.metadata.attributes})
    title = f"Tag {count_runs(len(accepted))}" if accepted else "Nothing to tag"
    lines = ["A tag that a run has already gets the new value; its other tags stay."]
    return show_confirmation(
        request, "tag", selection, outcomes, snippet, title=title, lines=lines, keys=tuple(keys)
    )


def write_tag_snippet(selection: Selection, change: Mapping[str, str | None]) -> Snippet:
    """Return how one tag is set or removed elsewhere."""
    ((key, value),) = change.items()
    python = f"set={{{quote_python(key)}: {quote_python(value)}}}"
    option = {"remove": key} if value is None else {"set": f"{key}={value}"}
    return selection.write_snippet("tag", [python], **option)


def show_confirmation(
    request: Request,
    verb: str,
    selection: Selection,
    outcomes: RunOutcomes,
    snippet: Snippet,
    *,
    title: str,
    lines: Sequence[str],
    keys: tuple[str, ...] = (),
) -> Response:
    """Show what an action will do."""
    accepted = list_accepted(outcomes)
    page = Action(
        verb=verb,
        title=title,
        lines=tuple([*lines, *describe_rest(outcomes)] if accepted else ()),
        refused=list_refused(outcomes),
        refused_text=describe_refused(outcomes),
        snippet=snippet,
        q=selection.q,
        is_all=selection.is_all,
        ids=() if selection.is_all else tuple(item.run_id for item in accepted),
        can_act=bool(accepted),
        button=title.rstrip("?"),
        way_out="Cancel" if verb == "tag" else "Keep them",
        keys=keys,
    )
    return templates.render_fragment(request, "parts/_runs_action.html", page)


def show_result(
    request: Request,
    verb: str,
    selection: Selection,
    outcomes: RunOutcomes,
    snippet: Snippet,
    *,
    title: str,
    lines: Sequence[str],
    receipt: str = "",
) -> Response:
    """Show what an action has done; the page then renews the rows and drops the selection."""
    page = Action(
        verb=verb,
        title=title,
        lines=tuple(lines if list_accepted(outcomes) else ()),
        refused=list_refused(outcomes),
        refused_text=describe_refused(outcomes),
        snippet=snippet,
        q=selection.q,
        is_all=selection.is_all,
        receipt=receipt,
        has_more=outcomes.more,
    )
    headers = [(b"hx-trigger", b"acted")]
    return templates.render_fragment(request, "parts/_runs_result.html", page, headers=headers)


def describe_rest(outcomes: RunOutcomes) -> list[str]:
    """Return a sentence about the runs that one request does not reach."""
    if not outcomes.more:
        return []
    return [f"More runs match; {format_count(bulk_runs.MOST)} are changed at once, newest first."]


def describe_refused(outcomes: RunOutcomes) -> str:
    """Return how many runs stay as they are, and why."""
    refused = outcomes.refused
    ended = sum(item.code == "RunFinished" for item in refused)
    texts = []
    if ended:
        texts.append(
            f"{count_runs(ended)} already ended and {pick_word(ended, 'stays', 'stay')} so"
        )
    if rest := len(refused) - ended:
        texts.append(f"{count_runs(rest)} {pick_word(rest, 'is', 'are')} refused")
    return "; ".join(texts)


def list_accepted(outcomes: RunOutcomes) -> list[RunOutcome]:
    """Return the outcomes of the runs that an action applies to."""
    return [item for item in outcomes.items if item.outcome != "Refused"]


def list_refused(outcomes: RunOutcomes) -> tuple[Refused, ...]:
    """Return the first runs that are refused."""
    return tuple(Refused(item.run_id, item.message or "") for item in outcomes.refused[:MOST_SHOWN])


def is_final(run: Run) -> bool:
    """Return whether a run has ended."""
    return run.condition is not None and run.condition.is_final


def pick_word(number: int, one: str, many: str) -> str:
    """Return the word that fits a number."""
    return one if number == 1 else many


def count_runs(number: int) -> str:
    """Return a number of runs as text."""
    return f"{format_count(number)} {pick_word(number, 'run', 'runs')}"


# Forms.


def read_selection(form: Form) -> Selection:
    """Return the runs that a form names.

    Raises:
        Refusal: InvalidId, InvalidFilter, InvalidBody.
    """
    is_all = is_set(form, "all")
    ids = () if is_all else tuple(dict.fromkeys(form.all("run")))
    for run_id in ids:
        check_id("run", run_id)
    if not ids and not is_all:
        raise Refusal("InvalidBody", "no run is selected; try: select some rows first")
    if len(ids) > bulk_runs.MOST:
        raise Refusal("InvalidBody", f"{len(ids)} runs are selected; at most {bulk_runs.MOST}")
    return Selection(ids, form.text("q").strip(), is_all)


def read_grace(form: Form) -> float | None:
    """Return the seconds that killed runs have to save and stop; None for those of their flows."""
    given = form.text("grace")
    if not given:
        return None
    if not given.isdecimal() or int(given) > 86_400:
        raise Refusal("InvalidBody", f"the grace time is {given[:20]!r}; it must be 0 to 86400")
    return float(given)


def is_set(form: Form, name: str) -> bool:
    """Return whether a box of a form is checked."""
    return form.text(name) == "true"


# Views, and the first run.


async def save_view(request: Request) -> Response:
    """Save what the list shows as a view."""
    form = await parse_form(request)
    state = read_form_state(form)
    columns = state.columns.split(",") if state.columns else []
    name = form.text("name").strip()[:100] or "Untitled"
    spec = ViewSpec(name=name, filter=state.q, order_by=state.sort, columns=columns)
    await documents.put(
        get_services(request),
        VIEW,
        get_actor(request),
        str(uuid.uuid4()),
        body=msgspec.json.encode(spec),
        spec=check_spec(spec),
        attributes={},
        if_match=None,
    )
    return await show_views(request, state)


async def delete_view(request: Request) -> Response:
    """Delete a saved view."""
    form = await parse_form(request)
    view_id = form.text("view")
    check_id("view", view_id)
    await documents.delete(get_services(request), VIEW, get_actor(request), view_id, if_match=None)
    return await show_views(request, read_form_state(form))


def read_form_state(form: Form) -> ListState:
    """Return the filter, order and columns that a form holds."""
    return ListState(
        q=form.text("q").strip(),
        sort=form.text("sort"),
        columns=table.normalize_columns(form.all("columns")),
    )


async def show_views(request: Request, state: ListState) -> Response:
    """Return the menu of saved views."""
    page = ViewsMenu(
        state=state,
        views=await table.list_views(request, state),
        may_change=get_actor(request).role in ("member", "admin"),
    )
    return templates.render_fragment(request, "parts/_runs_saved.html", page)


async def start_run(request: Request) -> Response:
    """Start the built-in run, and go to its page."""
    run_id = str(uuid.uuid4())
    await runs.create(
        get_services(request), get_actor(request), run_id, body=b"{}", flow={}, attributes={}
    )
    return Response(status=303, headers=[(b"location", f"/ui/runs/{run_id}".encode())])
