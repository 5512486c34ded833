"""``python -m runyard.controller``: settings come from the environment, as everywhere."""

import sys

from runyard.controller.main import main

if __name__ == "__main__":
    sys.exit(main())
