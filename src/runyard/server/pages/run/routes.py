"""The routes of a run's pages: tabs, the parts of them that are fetched again, and forms."""

from runyard.server.http.route import Route
from runyard.server.pages.run import actions, tabs

_RUN = "/ui/runs/{run_id:str}"

# fmt: off
ROUTES = (
    Route("GET", _RUN, tabs.get_overview, "Show a run's charts and checkpoints", role="viewer"),
    Route("GET", _RUN + "/predictions", tabs.get_predictions, "Show a run's predictions",
          role="viewer"),
    Route("GET", _RUN + "/log", tabs.get_log, "Show a run's log", role="viewer"),
    Route("GET", _RUN + "/timeline", tabs.get_timeline, "Show a run's timeline", role="viewer"),
    Route("GET", _RUN + "/flow", tabs.get_flow, "Show a run's flow and plan", role="viewer"),
    Route("GET", _RUN + "/files", tabs.get_files, "Show a run's files", role="viewer"),
    Route("GET", _RUN + "/head", tabs.get_head, "Get the head of a run's page", role="viewer"),
    Route("GET", _RUN + "/checkpoints", tabs.get_checkpoints, "Get the list of checkpoints",
          role="viewer"),
    Route("GET", _RUN + "/sample", tabs.get_sample, "Get a sample of the newest evaluation",
          role="viewer"),
    Route("GET", _RUN + "/removal", tabs.get_removal, "Get whether a deleted run is removed",
          role="viewer"),
    Route("POST", _RUN + "/kill", actions.kill_run, "Kill a run", role="member"),
    Route("POST", _RUN + "/delete", actions.delete_run, "Delete a run; shows the receipt",
          role="member"),
    Route("POST", _RUN + "/name", actions.rename_run, "Rename a run", role="member"),
    Route("POST", _RUN + "/tags", actions.tag_run, "Replace a run's tags", role="member"),
    Route("GET", _RUN + "/start", actions.get_start, "Show the form for another run",
          role="member"),
    Route("POST", _RUN + "/start", actions.post_start, "Start another run from this one",
          role="member", statuses=(303,)),
    Route("POST", _RUN + "/start/check", actions.check_start, "Compare and check another run",
          role="member"),
)
# fmt: on
