"""The root command: its output, its imports, and its errors."""

import subprocess
import sys

import pytest

from runyard.cli.failures import CommandFailed, to_command_failure
from runyard.cli.main import COMMANDS
from runyard.settings import SettingError
from tests.support.commands import Runyard

SLOW_TO_IMPORT = (
    "httpx2",
    "rich",
    "torch",
    "transformers",
    "PIL",
    "vi.client",
    "yaml",
    "granian",
    "sqlalchemy",
)
LOADED = """
import sys
from runyard.cli.main import main
sys.argv = ["runyard", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print("loaded:", *[name for name in {names!r} if name in sys.modules], file=sys.stderr)
"""


def modules_loaded_by(*arguments: str) -> list[str]:
    script = LOADED.format(names=SLOW_TO_IMPORT)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return done.stderr.rpartition("loaded:")[2].split()


def test_help_loads_nothing_that_is_slow_to_import() -> None:
    assert modules_loaded_by("--help") == []


def test_help_of_every_command_loads_nothing_that_is_slow_to_import() -> None:
    script = "import importlib, sys\nfrom runyard.cli.main import COMMANDS\n"
    script += (
        "for entry in COMMANDS.values(): importlib.import_module('runyard.cli.' + entry.module)\n"
    )
    script += f"print(*[name for name in {SLOW_TO_IMPORT!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_overview_lists_every_command_with_its_line(runyard: Runyard) -> None:
    shown = " ".join(runyard("--help").stdout.split())
    for name, entry in COMMANDS.items():
        assert f"{name} {entry.help}" in shown


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_that_opens_with_its_line(runyard: Runyard, name: str) -> None:
    result = runyard(name, "--help")
    assert result.exit_code == 0
    assert COMMANDS[name].help in " ".join(result.stdout.split())


def test_the_help_documents_every_exit_code(runyard: Runyard) -> None:
    from runyard.cli import failures

    shown = " ".join(runyard("--help").stdout.split())
    for name, code in vars(failures).items():
        if name.startswith("EXIT_"):
            assert f" {code} " in shown, name


def test_an_unknown_command_is_wrong_usage(runyard: Runyard) -> None:
    result = runyard("rums")
    assert result.exit_code == 2
    assert "rums" in result.stderr


def test_a_bad_setting_is_wrong_usage_and_names_the_variable(
    runyard: Runyard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNYARD_PORT", "seven")
    result = runyard("config", "show")
    assert result.exit_code == 2
    assert "RUNYARD_PORT is 'seven'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_file_is_one_line(runyard: Runyard) -> None:
    result = runyard("flows", "check", "no-such.yaml")
    assert (result.exit_code, result.stderr) == (
        4,
        "Error: flow file no-such.yaml does not exist\n",
    )


def test_an_unexpected_error_keeps_its_traceback() -> None:
    assert to_command_failure(KeyError("x")) is None


def test_an_error_of_the_system_is_explained_with_its_path() -> None:
    failure = to_command_failure(PermissionError(13, "Permission denied", "/data/x"))
    assert isinstance(failure, CommandFailed)
    assert failure.message == "Permission denied: /data/x"


def test_a_setting_error_is_explained_in_its_own_words() -> None:
    failure = to_command_failure(SettingError("RUNYARD_PORT is 'x'"))
    assert failure is not None
    assert (failure.message, failure.exit_code) == ("RUNYARD_PORT is 'x'", 2)


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("ViNotFoundError", 4),
        ("ViRunVanishedError", 4),
        ("ViAuthenticationError", 6),
        ("ViNetworkError", 5),
        ("ViTimeoutError", 7),
        ("ViConfigurationError", 2),
        ("ViInvalidParameterError", 2),
        ("ViRunFailedError", 3),
        ("ViConflictError", 1),
        ("ViServerError", 1),
    ],
)
def test_each_error_of_the_sdk_has_its_exit_code(name: str, exit_code: int) -> None:
    import vi.errors

    failure = to_command_failure(getattr(vi.errors, name)("it went wrong", suggestion="Do this."))
    assert failure is not None
    assert (failure.exit_code, failure.message) == (exit_code, "it went wrong\nDo this.")


def test_every_problem_the_server_names_has_a_line() -> None:
    import vi.errors

    error = vi.errors.ViValidationError(
        "The flow has 2 problems", details={"problems": [{"message": "a"}, {"message": "b"}]}
    )
    failure = to_command_failure(error)
    assert failure is not None
    assert failure.message == "The flow has 2 problems\n  a\n  b"


def test_a_problem_equal_to_the_message_is_printed_once() -> None:
    import vi.errors

    for message in ("a", "the flow has 1 problem: a"):
        failure = to_command_failure(
            vi.errors.ViValidationError(message, details={"problems": [{"message": "a"}]})
        )
        assert failure is not None
        assert failure.message == message


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(runyard: Runyard, shell: str) -> None:
    result = runyard("completion", shell)
    assert result.exit_code == 0
    assert "_RUNYARD_COMPLETE" in result.stdout


def test_completion_knows_subcommands() -> None:
    from click.shell_completion import ShellComplete

    from runyard.cli.main import cli

    completions = ShellComplete(cli, {}, "runyard", "_RUNYARD_COMPLETE").get_completions(
        ["runs"], "k"
    )
    assert [item.value for item in completions] == ["kill"]
