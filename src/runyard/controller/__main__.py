"""``python -m runyard.controller``: settings come from the environment, as everywhere."""

import sys

from runyard.starting import EXIT_CANNOT_START
from runyard.vi_package import describe_conflict

if __name__ == "__main__":
    if (conflict := describe_conflict()) is not None:
        print(f"the controller cannot start: {conflict}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    from runyard.controller.main import main

    sys.exit(main())
