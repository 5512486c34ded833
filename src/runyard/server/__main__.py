"""Run the server as a separate process, with settings from ``RUNYARD_*``."""

import sys

from runyard.extras import explain_missing_extra
from runyard.starting import EXIT_CANNOT_START
from runyard.vi_package import describe_conflict

if __name__ == "__main__":
    if (conflict := describe_conflict()) is not None:
        print(f"the server cannot start: {conflict}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    try:
        from runyard.server.process import main
    except ModuleNotFoundError as error:
        sentence = explain_missing_extra(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    sys.exit(main())
