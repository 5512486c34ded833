"""What a run's condition means for its user: what happened, where, and what to do next.

Each reason of ``conditions.MEANINGS`` has one entry. A fix is a link to the form that starts
another run, with the settings to change in its query; the form shows the difference first.
"""

import re
from urllib.parse import quote, urlencode

import msgspec

from runyard.server.pages.views import split_words
from runyard.server.services.runs.conditions import MEANINGS, PENDING, RUNNING
from vi.api.resources.runs.responses import Run, RunAttempt
from vi.api.responses import ConditionKind, RunSuggestion

_WEIGHTS = "vi-model.architecture.weights"
_FINDING_TITLES = {
    "TinyImages": "The model sees little of these images",
    "NothingLearned": "Nothing was learned",
}
# Settings that the form which starts another run has a field for, with its name.
_FIELDS = {
    f"vi-model.hyperparameters.{name}": name
    for name in ("epochs", "maxSteps", "learningRate", "batchSize")
}
_ADVICE = {
    "WaitingForMachine": "Start a machine: runyard up, or runyard worker on another one.",
    "WaitingForCapacity": "Change the tolerations of the flow, or connect a machine that fits.",
    "WaitingForDisk": "Free disk space on the machine, or delete checkpoints that nobody needs.",
    "InvalidFlow": "Change the setting that the message names, and start the changed flow.",
    "InvalidData": "Correct the dataset, import it again, and run again.",
    "OutOfMemory": "A smaller micro-batch needs less memory at the same batch size.",
    "Diverged": "A lower learning rate usually prevents this.",
    "TrainerError": "Read the log at the failure. The same flow would fail the same way.",
    "WorkerLost": "The flow is not the cause: resume from the newest checkpoint.",
    "StorageUnavailable": "Check the server's disk, then resume.",
    "TimeLimit": "Resume with a longer time limit to train on.",
    "KilledByUser": "Resume from the newest checkpoint to train on.",
}


class NextStep(msgspec.Struct, frozen=True, kw_only=True):
    """A link with its text; the first of several is the one to take."""

    text: str
    href: str


class Banner(msgspec.Struct, frozen=True, kw_only=True):
    """An explanation above a run: what happened, where, and the next steps.

    ``tone`` is ``bad``, ``wait`` or ``off``; ``proofs`` has one sentence per attempt.
    """

    tone: str
    title: str
    text: str
    place: str
    advice: str
    links: list[NextStep]
    proofs: list[str]


class FindingNote(msgspec.Struct, frozen=True, kw_only=True):
    """A finding above a run: what it is, and what to try."""

    title: str
    text: str
    suggestions: list["SuggestionNote"]


class SuggestionNote(msgspec.Struct, frozen=True, kw_only=True):
    """A suggestion: its text, the setting as ``--set`` takes it, and the form that has it."""

    text: str
    setting: str
    href: str


def explain_run(run: Run, *, base: str, has_checkpoint: bool) -> Banner | None:
    """Return the banner of a run; None while it trains, and when it succeeded as planned."""
    if not run.status.conditions:
        return None
    latest = run.status.conditions[-1]
    kind, reason = latest.condition, latest.reason or ""
    if kind is RUNNING and reason not in ("Stopping", "WaitingForDisk"):
        return None
    if reason in ("Completed", "EarlyStopped"):
        return None
    message, _, suggestion = (latest.message or "").partition("; try: ")
    meaning = MEANINGS.get(kind, {}).get(reason, "")
    return Banner(
        tone=_choose_tone(kind),
        title=f"{split_words(reason or kind.value)}{_describe_meaning(meaning)}",
        text=message,
        place=_describe_place(run) if kind.is_final else "",
        advice=f"Try: {suggestion}." if suggestion else _ADVICE.get(reason, ""),
        links=_list_links(run, reason, base=base, has_checkpoint=has_checkpoint),
        proofs=_list_proofs(run),
    )


def _choose_tone(kind: ConditionKind) -> str:
    if kind in (ConditionKind.FAILED, ConditionKind.ERROR):
        return "bad"
    return "wait" if kind in (PENDING, RUNNING) else "off"


def _describe_meaning(meaning: str) -> str:
    return f": {meaning}" if meaning else ""


def _describe_place(run: Run) -> str:
    """Return at which step and attempt a run ended."""
    progress, attempts = run.status.progress, run.status.attempts
    facts = []
    if progress is not None and progress.step:
        of = f" of {progress.total_steps:,}" if progress.total_steps else ""
        facts.append(f"at step {progress.step:,}{of}")
    if attempts:
        facts.append(f"attempt {attempts[-1].attempt} on {attempts[-1].machine or 'a machine'}")
    return ", ".join(facts)


def _list_links(run: Run, reason: str, *, base: str, has_checkpoint: bool) -> list[NextStep]:
    links = []
    kind = run.condition
    if (fix := suggest_fix(run)) is not None:
        how = "resume" if fix.resumes and has_checkpoint else "again"
        query = urlencode({"how": how, "set": f"{fix.setting}={fix.value}"})
        links.append(NextStep(text=fix.text, href=f"{base}/start?{query}"))
    elif kind is not None and kind.is_final and has_checkpoint:
        links.append(NextStep(text="Resume…", href=f"{base}/start?how=resume"))
    elif kind is not None and kind.is_final:
        links.append(NextStep(text="Run again…", href=f"{base}/start?how=again"))
    if run.status.attempts and kind is not None and kind.is_final:
        end = run.status.attempts[-1].time_ended or run.status.conditions[-1].last_transition_time
        links.append(
            NextStep(text="Log at the end", href=f"{base}/log?at={max(end - 5000, 0)}&follow=0")
        )
    if len(run.status.attempts) > 1:
        count = len(run.status.attempts)
        links.append(NextStep(text=f"All {count} attempts", href=f"{base}/timeline#attempts"))
    return links


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """A setting to change, by its name in the form, and the text of the link to that form."""

    text: str
    setting: str
    value: str
    resumes: bool = False


def suggest_fix(run: Run) -> Fix | None:
    """Return what to change so that a failed run would not fail again; None where that is unknown.

    The settings are fields of the form that starts a run.
    """
    reason = run.status.conditions[-1].reason if run.status.conditions else None
    if reason == "OutOfMemory":
        size = find_micro_batch(run)
        if size is not None and size > 1:
            text = f"Run again with micro-batch {size // 2}…"
            return Fix(text=text, setting="microBatchSize", value=str(size // 2))
    if reason == "Diverged":
        rate = get_plan_value(run, "learningRate")
        if isinstance(rate, int | float) and rate > 0:
            lower = f"{rate / 10:.2g}"
            text = f"Run again with learning rate {lower}…"
            return Fix(text=text, setting="learningRate", value=lower)
    limit = run.spec.flow.settings.get("timeLimitMinutes")
    if reason == "TimeLimit" and isinstance(limit, int | float):
        text = "Resume with twice the time…"
        return Fix(text=text, setting="timeLimitMinutes", value=f"{limit * 2:g}", resumes=True)
    return None


def describe_findings(run: Run, *, base: str) -> list[FindingNote]:
    """Return the findings of a run for its page."""
    return [
        FindingNote(
            title=_FINDING_TITLES.get(finding.code, split_words(finding.code)),
            text=f"{finding.message}.",
            suggestions=[_describe_suggestion(run, each, base) for each in finding.suggestions],
        )
        for finding in run.status.findings
    ]


def _describe_suggestion(run: Run, suggestion: RunSuggestion, base: str) -> SuggestionNote:
    """Return a suggestion with a link to the form that has its value, or that chooses a model."""
    value = suggestion.value
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    href = ""
    if suggestion.setting == _WEIGHTS:
        href = f"/ui/runs/new?{urlencode({'from': run.run_id})}"
    elif (name := _FIELDS.get(suggestion.setting or "")) is not None:
        href = f"{base}/start?{urlencode({'how': 'again', 'set': f'{name}={text}'})}"
    return SuggestionNote(
        text=f"{suggestion.text[:1].upper()}{suggestion.text[1:]}",
        setting="" if suggestion.setting is None else f"{suggestion.setting}={text}",
        href=href,
    )


def find_micro_batch(run: Run) -> int | None:
    """Return the micro-batch size of the last attempt, of the plan, or of the message."""
    for attempt in reversed(run.status.attempts):
        if attempt.micro_batch_size:
            return attempt.micro_batch_size
    value = get_plan_value(run, "microBatchSize")
    if isinstance(value, int):
        return value
    message = run.status.conditions[-1].message or ""
    found = re.search(r"microBatchSize (\d{1,6})", message)
    return int(found[1]) if found else None


def get_plan_value(run: Run, name: str) -> object:
    """Return a value of the plan; None if it is not resolved yet."""
    entry = (run.status.plan or {}).get(name)
    return entry.get("value") if isinstance(entry, dict) else None


def _list_proofs(run: Run) -> list[str]:
    """Return for each attempt how its processes ended; nothing while one may be alive."""
    if run.condition is None or not run.condition.is_final:
        return []
    if not run.status.attempts:
        return ["No process was started."]
    proofs = [_describe_end(attempt) for attempt in run.status.attempts]
    if all(attempt.time_ended for attempt in run.status.attempts):
        return [*proofs, "No process of this run is left."]
    return proofs


def _describe_end(attempt: RunAttempt) -> str:
    facts = []
    if attempt.exit_code is not None:
        facts.append(f"exit code {attempt.exit_code}")
    if attempt.signal:
        facts.append(attempt.signal)
    where = f" on {attempt.machine}" if attempt.machine else ""
    if not attempt.time_ended:
        return f"Attempt {attempt.attempt}{where} has not ended."
    how = ", ".join(facts)
    cause = f": {attempt.cause}" if attempt.cause else ""
    return f"Attempt {attempt.attempt}{where} ended{' with ' + how if how else ''}{cause}."


def build_base(run_id: str) -> str:
    """Return the path of a run's pages."""
    return f"/ui/runs/{quote(run_id, safe='')}"
