"""Run the server as a separate process, with settings from ``RUNYARD_*``."""

import gc
import sys

from runyard.extras import explain_missing_extra
from runyard.starting import EXIT_CANNOT_START
from runyard.vi_package import describe_conflict

if __name__ == "__main__":
    # Imports make many objects and no garbage; collections among them take a fifth of the start.
    # ``process`` enables them again before the first request.
    gc.disable()
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
