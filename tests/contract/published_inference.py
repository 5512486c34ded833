"""Answers of the published client's local inference, for ``test_published_inference.py``.

The argument is a JSON file with a list of ``{"runId", "folder", "asked": [[image, question],
...]}``. The last line of the output has the answers, in that order, and the path of the client's
package.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def refuse(*command: Any, **_: Any) -> None:
    """Refuse the client's attempts to install missing packages."""
    raise SystemExit(f"the client wants to run {command}")


subprocess.Popen.__init__ = refuse  # type: ignore[method-assign]

from vi.inference import ViModel  # type: ignore[import-not-found]  # noqa: E402

import vi  # noqa: E402


def main() -> None:
    found = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        # An existing folder is used unchanged: no server is called. Of all kinds of task, this one
        # keeps our prompt.
        model = ViModel(
            run_id=case["runId"],
            save_path=case["folder"],
            secret_key="dtvi_" + "a" * 98,
            organization_id="00000000-0000-0000-0000-000000000000",
            endpoint="http://127.0.0.1:9",
        )
        answers = []
        for make_image_bytes, question in case["asked"]:
            answer, error = model(
                source=make_image_bytes,
                user_prompt=question,
                task_type="generic",
                show_progress=False,
            )
            answers.append(answer.raw_output if error is None else repr(error))
        found.append(answers)
    print("\n" + json.dumps({"found": found, "client": vi.__file__}))


main()
