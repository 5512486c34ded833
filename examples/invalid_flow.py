"""Send an invalid flow: the server rejects it before anything runs, and reports every problem at
once.
"""

import vi

FLOW = {
    "name": "with-three-mistakes",
    "blocks": [
        {"block": "vi-dataset", "settings": {"validationFraction": 2}},
        {"block": "vi-modle"},
    ],
    "settings": {"sede": 1},
}

with vi.Client() as client:
    try:
        client.runs.create(flow=FLOW)
    except vi.ViValidationError as error:
        for problem in error.details["problems"]:
            print(problem["message"])
