"""Make one call whenever a line says so, and answer how long it took: the program both clients run.

Both are imported as ``vi`` and have these calls in common, so each environment runs this same text.
Only the call is
timed: process, import and the first connection are behind us by then, and rows of their own in the
table.
"""

import json
import sys
import time

import vi


def main() -> None:
    client = vi.Client()
    run_id = sys.argv[1]
    calls = {
        "list": lambda: client.runs.list({"page_size": 100}),
        "get": lambda: client.runs.get(run_id),
    }
    for line in sys.stdin:
        call = calls[line.strip()]
        began = time.perf_counter()
        answer = call()
        took_ms = (time.perf_counter() - began) * 1000
        found = [run.run_id for run in answer.items] if line.strip() == "list" else [answer.run_id]
        print(json.dumps({"ms": took_ms, "count": len(found), "last": found[-1]}), flush=True)


if __name__ == "__main__":
    main()
