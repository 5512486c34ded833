"""Lets the tests of this folder import ``simulation``, which ``simulate.py`` imports as its neighbour."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
