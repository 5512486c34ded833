"""Hostile chat templates and tokenizers of model folders are stopped, named, and final."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.trainer.data import templates
from runyard.trainer.data.encode import Encoder, build_conversation
from runyard.trainer.data.templates import BuiltInTemplate, TemplateProcess
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.export.predict import Predictor
from runyard.trainer.families import get_family_parts
from runyard.trainer.main import train_attempt
from runyard.trainer.models.model import load_processor

Processor = Callable[[str], Any]
MESSAGES = build_conversation("Look.", "which digit is this")
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor "
    "%}",
    "loops in a macro": (
        "{% macro m(n) %}{% for a in range(99) %}{% if n %}{{ m(n - 1) }}{% endif %}{% endfor %}{% "
        "endmacro %}{{ m(9) }}"
    ),
    "one operation that nothing interrupts": "{{ 9 ** (9 ** 9) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a text that doubles": (
        "{% set ns = namespace(t='ab') %}{% for a in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% "
        "endfor %}{{ ns.t }}"
    ),
    "a text repeated": "{{ 'a' * 10 ** 10 }}",
    "a long answer": "{{ 'a' * 2 ** 21 }}",
    "a width": "{{ 'a'.center(10 ** 10) }}",
    "a list": "{{ range(99999) | list * 99999 }}",
    "only for one question": (
        "{% if 'digit' in messages | string %}{% for a in range(99999) %}{% for b in range(99999) "
        "%}{% endfor %}{% endfor %}{% endif %}"
    ),
}
SAYS = {
    "recursion": "nests too deeply",
    "a long answer": r"wrote 2,097,152 characters; the limit is 1,048,576",
    **dict.fromkeys(
        ("a text that doubles", "a text repeated", "a width", "a list"),
        "(needs more than 512 MiB of memory|was stopped after 0.5 s)",
    ),
}


@pytest.fixture
def with_template(miniature: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return one of the operator's folders: a miniature with the given chat template."""

    def make(template: str) -> Path:
        folder = tmp_path / "models" / "bomb"
        shutil.copytree(miniature("llava"), folder)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


@pytest.fixture
def processor(with_template: Callable[[str], Path]) -> Processor:
    return lambda template: load_processor(with_template(template))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "CPU_S", 0.5)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_stopped_and_named_with_its_limit(processor: Processor, name: str) -> None:
    renderer = TemplateProcess(processor(BOMBS[name]))
    says = SAYS.get(name, "was stopped after 0.5 s of CPU time, which is the limit")
    with pytest.raises(
        InvalidFlow, match=rf"the chat template of bomb .*{says}.*; try: .*chat_template\.jinja"
    ):
        renderer.render(MESSAGES, with_generation_prompt=True)


def test_a_bomb_off_the_main_thread_and_in_a_fork_is_stopped_as_well(processor: Processor) -> None:
    renderer = TemplateProcess(processor(BOMBS["only for one question"]))
    messages: list[str] = []

    def work() -> None:
        try:
            renderer.render(MESSAGES, with_generation_prompt=True)
        except InvalidFlow as error:
            messages.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "CPU time" in messages[0]
    harmless = build_conversation("", "hello")
    assert renderer.render(harmless, with_generation_prompt=True) == ""  # it is there again
    pid = os.fork()
    if pid == 0:
        try:
            renderer.render(harmless, with_generation_prompt=True)
            renderer.render(MESSAGES, with_generation_prompt=True)
        except InvalidFlow:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert renderer.render(harmless, with_generation_prompt=True) == ""


def test_the_error_of_a_template_is_part_of_the_message(processor: Processor) -> None:
    renderer = TemplateProcess(processor("{{ raise_exception('no system prompt, please') }}"))
    with pytest.raises(
        InvalidFlow, match=r"does not support this conversation .*no system prompt, please"
    ):
        renderer.render(MESSAGES, with_generation_prompt=False)


def test_a_renderer_writes_the_same_text_as_the_library(miniature: Callable[[str], Path]) -> None:
    loaded = load_processor(miniature("llava"))
    limited, plain = TemplateProcess(loaded), BuiltInTemplate(loaded)
    for question in ("hello", "ünï ✓ \U0001f600", "line\nline", "{{ 7 * 7 }}", ""):
        for prompt in (True, False):
            asked = build_conversation("Look.", question)
            assert limited.render(asked, with_generation_prompt=prompt) == plain.render(
                asked, with_generation_prompt=prompt
            )


def test_the_renderers_process_inherits_nothing_and_ends_with_its_parent(
    processor: Processor, tmp_path: Path
) -> None:
    import fcntl

    lock = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    renderer = TemplateProcess(processor("{{ messages | length }}"))
    os.close(lock)
    again = os.open(tmp_path / "run.lock", os.O_RDWR)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)
    child = renderer._child
    assert child is not None
    pid = child._pid
    os.kill(
        pid, signal.SIGTERM
    )  # as when an entire process group gets the signal: the step is finished first
    assert renderer.render(MESSAGES, with_generation_prompt=False) == "2"
    del renderer, child
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_tokenizer_with_catastrophic_backtracking_is_stopped(
    miniature: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "slow"
    shutil.copytree(miniature("llava"), folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    pattern = {
        "type": "Split",
        "pattern": {"Regex": "(?:a|a|aa)+(?<=b)c"},
        "behavior": "Isolated",
        "invert": False,
    }
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [pattern, document["pre_tokenizer"]],
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(InvalidFlow, match=r"the tokenizer of slow .*try: .*tokenizer\.json"):
        TemplateProcess(load_processor(folder)).check_tokenizer()


def test_a_run_with_an_endless_template_fails_permanently_while_preparing(
    with_template: Callable[[str], Path], make_attempt: Callable[..., Path], events_of: Any
) -> None:
    # Harmless for the initial checks, which use no sample.
    folder = with_template(
        "{% if 'QUESTION' not in messages | string %}" + BOMBS["nested loops"] + "{% endif %}"
    )
    attempt = make_attempt(
        {"vi-dataset": {"maxSamples": 8}, "vi-model": {"architecture": {"weights": str(folder)}}}
    )
    assert train_attempt(attempt) == 64
    result = json.loads((attempt / "result.json").read_text())
    assert result["reason"] == "InvalidFlow"
    assert "the chat template of bomb was stopped after 0.5 s" in result["message"]
    assert {event["phase"] for event in events_of(attempt, "phase")} == {"Preparing"}


def test_prediction_with_an_endless_template_reports_the_limit(
    with_template: Callable[[str], Path],
) -> None:
    with pytest.raises(InvalidFlow, match="the chat template of bomb was stopped"):
        Predictor(with_template(BOMBS["nested loops"]))


def test_an_encoder_without_a_renderer_is_limited_as_well(processor: Processor) -> None:
    with pytest.raises(InvalidFlow, match="the chat template of bomb was stopped"):
        Encoder(
            processor(BOMBS["nested loops"]),
            get_family_parts("llava"),
            system_prompt="",
            task="vqa",
        )


def test_the_process_of_an_encoder_ends_with_it(miniature: Callable[[str], Path]) -> None:
    import gc

    gc.disable()
    try:
        encoder = Encoder(
            load_processor(miniature("llava")),
            get_family_parts("llava"),
            system_prompt="",
            task="vqa",
        )
        renderer = encoder._renderer
        assert isinstance(renderer, TemplateProcess) and renderer._child is not None
        pid = renderer._child._pid
        os.kill(pid, 0)
        del encoder, renderer
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    finally:
        gc.enable()
