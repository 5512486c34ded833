"""What can be done to a run: each form calls the one service that the API's route calls."""

import uuid

import msgspec
from msgspec import UNSET

from runyard import limits
from runyard.server.http.request import (
    Id,
    Query,
    Request,
    get_actor,
    get_services,
)
from runyard.server.http.responses import Response
from runyard.server.pages import templates
from runyard.server.pages.forms import parse_form
from runyard.server.pages.run import facts, start, tabs
from runyard.server.pages.run.causes import build_base
from runyard.server.pages.run.start import Draft, How
from runyard.server.pages.views import format_bytes, format_clock
from runyard.server.services.errors import Problem, Refusal
from runyard.server.services.runs import deletion, flow_checks, runs
from vi.api.resources.flows.responses import FlowCheck, FlowProblem


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted with a run."""

    id: str
    name: str
    condition: str
    time: str
    actor: str
    checkpoints: str
    log_lines: str
    points: str
    is_removed: bool


async def kill_run(request: Request, run_id: Id) -> Response:
    """Kill a run; return its head, or go back to the page."""
    form = await parse_form(request)
    grace = form.text("grace").strip()
    await runs.update(
        get_services(request),
        get_actor(request),
        run_id,
        kill=True,
        grace_s=_parse_seconds(grace) if grace else None,
        training_project=UNSET,
        attributes={},
        if_match=None,
    )
    return await _answer_change(request, run_id)


async def rename_run(request: Request, run_id: Id) -> Response:
    """Give a run another name; an empty one is that of the flow."""
    form = await parse_form(request)
    name = form.text("name").strip()
    _check_texts(name, {})
    await runs.update(
        get_services(request),
        get_actor(request),
        run_id,
        kill=False,
        training_project=UNSET,
        attributes={},
        name=name or None,
        if_match=None,
    )
    return await _answer_change(request, run_id)


async def tag_run(request: Request, run_id: Id) -> Response:
    """Replace the tags of a run by those of the form, one ``key=value`` per line."""
    form = await parse_form(request)
    services, actor = get_services(request), get_actor(request)
    run = runs.decode_run(runs.get(services, org=actor.org, run_id=run_id)[0])
    tags = _parse_tags(form.text("tags"))
    _check_texts("", tags)
    removed = dict.fromkeys(key for key in run.metadata.attributes if key not in tags)
    await runs.update(
        services,
        actor,
        run_id,
        kill=False,
        training_project=UNSET,
        attributes={**removed, **tags},
        if_match=None,
    )
    return await _answer_change(request, run_id)


async def delete_run(request: Request, run_id: Id) -> Response:
    """Delete a run and show the receipt."""
    services, actor = get_services(request), get_actor(request)
    loaded = await facts.load_run(request, run_id)
    found = await deletion.read_contents(services, org=actor.org, run_id=run_id)
    await deletion.delete(services, actor, run_id, if_match=None)
    receipt = Receipt(
        id=run_id,
        name=loaded.head.name,
        condition=loaded.head.kind,
        time=format_clock(services.clock.now_ms()),
        actor=actor.name,
        checkpoints=f"{len(found.checkpoints)}, {format_bytes(found.checkpoint_bytes)}",
        log_lines=f"{found.log_lines:,}",
        points=f"{found.metric_points:,}",
        is_removed=deletion.is_removed(services, org=actor.org, run_id=run_id),
    )
    name = "parts/_run_receipt.html" if templates.is_fragment(request) else "run_receipt.html"
    return templates.render_fragment(request, name, receipt)


async def get_start(request: Request, run_id: Id) -> Response:
    """Show the form that starts another run."""
    query, loaded = Query(request), await facts.load_run(request, run_id)
    how = query.one_of("how", start.WAYS) or "again"
    draft = start.build_draft(loaded.run, _check_way(how), query.all("set"))
    return await _render_form(request, loaded, draft, how=_check_way(how))


async def check_start(request: Request, run_id: Id) -> Response:
    """Return what the form would start: differences and problems."""
    form, loaded = await parse_form(request), await facts.load_run(request, run_id)
    draft = start.parse_draft(loaded.run, form)
    check = await _check(loaded, draft)
    preview = start.build_preview(loaded.run, draft, base=loaded.head.base, check=check)
    page = PreviewPart(preview=preview)
    return templates.render_fragment(request, "parts/_run_preview.html", page)


class PreviewPart(msgspec.Struct, frozen=True, kw_only=True):
    """The preview alone."""

    preview: start.Preview


async def post_start(request: Request, run_id: Id) -> Response:
    """Start the run of the form and go to its page; with problems, show the form again."""
    form, loaded = await parse_form(request), await facts.load_run(request, run_id)
    draft, how = start.parse_draft(loaded.run, form), _check_way(form.text("how", "again"))
    if draft.problems:
        return await _render_form(request, loaded, draft, how=how, status=400)
    new_id = form.text("id") or str(uuid.uuid4())
    resume_from = (run_id, draft.checkpoint) if draft.checkpoint else None
    body = msgspec.json.encode([draft.flow, draft.tags, draft.name, resume_from])
    try:
        _check_texts(draft.name, draft.tags)
        await runs.create(
            loaded.services,
            get_actor(request),
            new_id,
            body=body,
            flow=draft.flow,
            training_project=loaded.run.spec.training_project,
            resume_from=resume_from,
            attributes=draft.tags,
            name=draft.name or None,
        )
    except Refusal as refusal:
        return await _render_form(
            request, loaded, draft, how=how, refusal=refusal, status=refusal.status
        )
    return Response(status=303, headers=[(b"location", build_base(new_id).encode())])


async def _render_form(
    request: Request,
    loaded: facts.LoadedRun,
    draft: Draft,
    *,
    how: How,
    refusal: Refusal | None = None,
    status: int = 200,
) -> Response:
    page = start.build_form(
        loaded.run,
        loaded.head,
        draft,
        how=how,
        models=loaded.models,
        check=_to_check(refusal) if refusal else await _check(loaded, draft),
        new_id=str(uuid.uuid4()),
    )
    return templates.render_page(request, "run_start.html", page, status=status)


async def _check(loaded: facts.LoadedRun, draft: Draft) -> FlowCheck:
    """Return what the server would say to the flow of a draft, and whether it fits."""
    project = loaded.run.spec.training_project
    try:
        return await flow_checks.check(
            loaded.services, org=loaded.org, flow=draft.flow, training_project=project
        )
    except Refusal as refusal:
        return _to_check(refusal)


def _to_check(refusal: Refusal) -> FlowCheck:
    problems = refusal.problems or [
        Problem(path="", given=None, allowed="", message=refusal.message)
    ]
    return FlowCheck(
        problems=[
            FlowProblem(path=one.path, given=one.given, allowed=one.allowed, message=one.message)
            for one in problems
        ]
    )


def _check_way(how: str) -> How:
    found = next((way for way in start.WAYS if way == how), None)
    if found is None:
        allowed = ", ".join(start.WAYS)
        message = f"field 'how' is {how[:40]!r}; it must be one of {allowed}"
        problem = Problem(path="/how", given=how[:40], allowed=allowed, message=message)
        raise Refusal("InvalidBody", message, problems=[problem])
    return found


def _check_texts(name: str, tags: dict[str, str]) -> None:
    """Raise Refusal unless a name and tags are within the limits that the API has for them."""
    checked = [("name", limits.RUN_NAME, name)]
    checked += [("tags", limits.ATTRIBUTE_KEY, key) for key in tags]
    checked += [("tags", limits.ATTRIBUTE_VALUE, value) for value in tags.values()]
    for field, limit, text in checked:
        if problem := limit.find_problem(text):
            raise _invalid_field(field, text, f"{text[:40]!r} {problem}")
    total = sum(len(key.encode()) + len(value.encode()) for key, value in tags.items())
    if len(tags) > limits.ATTRIBUTES.value or total > limits.ATTRIBUTES_TOTAL.value:
        raise _invalid_field(
            "tags",
            f"{len(tags)} tags",
            f"there are {len(tags)} tags of {total:,} bytes; at most {limits.ATTRIBUTES.value} of "
            f"{limits.ATTRIBUTES_TOTAL.value:,} bytes are allowed; try: fewer",
        )


def _invalid_field(name: str, given: str, message: str) -> Refusal:
    problem = Problem(path=f"/{name}", given=given[:40], allowed="see docs", message=message)
    return Refusal("InvalidBody", f"field {name!r}: {message}", problems=[problem])


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        message = f"{text[:40]!r} must be a number of seconds up to 3600"
        raise _invalid_field("grace", text, message)
    return seconds


def _parse_tags(text: str) -> dict[str, str]:
    tags = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals or not key.strip():
            raise _invalid_field("tags", line, f"{line[:40]!r} is not key=value; try: owner=kim")
        tags[key.strip()] = value.strip()
    return tags


async def _answer_change(request: Request, run_id: str) -> Response:
    """Return the changed head for htmx; send a browser back to the page."""
    if templates.is_fragment(request):
        return tabs.render_head(request, await facts.load_run(request, run_id))
    return Response(status=303, headers=[(b"location", build_base(run_id).encode())])
