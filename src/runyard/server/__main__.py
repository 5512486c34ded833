"""``python -m runyard.server``: the server as a process of its own, settings from ``RUNYARD_*``."""

import sys

from runyard.vi_package import describe_conflict

if __name__ == "__main__":
    if (conflict := describe_conflict()) is not None:
        sys.exit(f"the server cannot start: {conflict}")
    from runyard.server.process import main

    sys.exit(main())
