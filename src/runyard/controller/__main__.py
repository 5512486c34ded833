"""``python -m runyard.controller``: settings come from the environment, as everywhere."""

import sys

from runyard.vi_package import describe_conflict

if __name__ == "__main__":
    if (conflict := describe_conflict()) is not None:
        sys.exit(f"the controller cannot start: {conflict}")
    from runyard.controller.main import main

    sys.exit(main())
