"""``python -m runyard.trainer ATTEMPT_DIR``: train one attempt; the exit code says how it ended."""

import sys
from pathlib import Path

from runyard.trainer.main import train_attempt

if len(sys.argv) != 2:
    sys.exit("usage: python -m runyard.trainer ATTEMPT_DIR")
sys.exit(train_attempt(Path(sys.argv[1])))
