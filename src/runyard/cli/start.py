"""The entry point of the ``runyard`` script: imports nothing beyond the standard library before it knows that it can.

The wheel without extras is the SDK alone. The script is installed all the same, and then names the extra that it needs.
"""

import sys
from collections.abc import Sequence

from runyard.extras import explain_missing_extra

EXIT_USAGE = 2  # as in runyard.cli.failures, which needs click


def main() -> None:
    """Run the command line, or name the extra without which there is none."""
    try:
        from runyard.cli.main import main as run
    except ModuleNotFoundError as error:
        sentence = explain_missing_extra(error)
        if sentence is None:
            raise
        sys.exit(without_command_line(sys.argv[1:], sentence))
    run()


def without_command_line(arguments: Sequence[str], sentence: str) -> int:
    """Answer what can be answered without the command line's libraries; returns the exit code."""
    if arguments[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"runyard {version('runyard')}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print("The Python SDK is installed: `import vi` (its client talks to a Runyard server).")
        print(f"The command line is not: {sentence}")
        return 0 if arguments else EXIT_USAGE
    print(f"Error: {sentence}", file=sys.stderr)
    return EXIT_USAGE
