"""Entry point of the ``runyard`` script, which reports a missing extra instead of a traceback.

The wheel without extras contains only the SDK. The script is installed anyway; it then names the
extra that it needs. This module imports only the standard library at first.
"""

import sys
from collections.abc import Sequence

from runyard.extras import explain_missing_extra

EXIT_USAGE = 2  # as in runyard.cli.failures, which needs click


def main() -> None:
    """Run the command line, or report the missing extra."""
    try:
        from runyard.cli.main import main as run
    except ModuleNotFoundError as error:
        sentence = explain_missing_extra(error)
        if sentence is None:
            raise
        sys.exit(run_without_command_line(sys.argv[1:], sentence))
    run()


def run_without_command_line(arguments: Sequence[str], sentence: str) -> int:
    """Handle ``--version`` and ``--help`` without the libraries of the command line.

    Return the exit code.
    """
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
