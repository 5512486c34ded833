"""``python -m runyard.server``: the server as a process of its own, settings from ``RUNYARD_*``."""

import sys

from runyard.server.process import main

if __name__ == "__main__":
    sys.exit(main())
