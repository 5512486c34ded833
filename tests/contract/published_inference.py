"""Answers of the published client's local inference, for ``test_published_inference.py``.

The argument is a JSON file with a list of ``{"runId", "folder", "asked": [[picture, question],
...]}``. The last line of the output is what is said, in that order, and where the client's package
lies.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def refuse(*command: Any, **_: Any) -> None:
    """The client would install packages by itself where it finds one missing."""
    raise SystemExit(f"the client wants to run {command}")


subprocess.Popen.__init__ = refuse  # type: ignore[method-assign]

from vi.inference import ViModel  # type: ignore[import-not-found]  # noqa: E402

import vi  # noqa: E402


def main() -> None:
    found = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        # A folder that is there is used as it is: no server is asked. Of all kinds of task this one
        # keeps our prompt.
        model = ViModel(
            run_id=case["runId"],
            save_path=case["folder"],
            secret_key="dtvi_" + "a" * 98,
            organization_id="00000000-0000-0000-0000-000000000000",
            endpoint="http://127.0.0.1:9",
        )
        said = []
        for picture, question in case["asked"]:
            answer, error = model(
                source=picture, user_prompt=question, task_type="generic", show_progress=False
            )
            said.append(answer.raw_output if error is None else repr(error))
        found.append(said)
    print("\n" + json.dumps({"found": found, "client": vi.__file__}))


main()
