"""``python -P -m runyard.supervisor FOLDER --credentials-fd N``: the cold start of a supervisor."""

import argparse
import sys
from pathlib import Path

from runyard.supervisor.main import read_credentials, supervise


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runyard.supervisor", description="Supervise one attempt."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--credentials-fd",
        type=int,
        required=True,
        help="descriptor with endpoint, token and trust as JSON",
    )
    arguments = parser.parse_args()
    return supervise(arguments.folder, **read_credentials(arguments.credentials_fd))


if __name__ == "__main__":
    sys.exit(main())
