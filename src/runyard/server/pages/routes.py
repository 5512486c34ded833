"""The list of all pages, fragments and forms, as ``http.routes`` lists the API's routes.

``role`` is required here: the least role that may open a page. A form of a page calls a service
that a route of the API also calls.
"""

from runyard.server.http.route import Route
from runyard.server.pages import new_run, run, runs, sessions, stream

# fmt: off
PAGES = (
    Route("GET", "/ui", runs.get_home, "Go to the runs", role="viewer"),
    Route("GET", "/ui/enter", sessions.get_enter, "Show the form to sign in"),
    Route("GET", "/ui/sessions", sessions.get_session, "Get whether the browser is signed in"),
    Route("POST", "/ui/sessions", sessions.post_session, "Sign in with a code or a key",
          statuses=(201,)),
    Route("POST", "/ui/codes", sessions.post_code, "Create a one-time code; needs a key",
          role="viewer", statuses=(201,)),
    Route("POST", "/ui/leave", sessions.leave, "Sign out", role="viewer", statuses=(303,)),
    Route("GET", "/ui/stream", stream.get_stream, "Stream what changes", role="viewer",
          is_endless=True),

    Route("GET", "/ui/runs", runs.list_runs, "List runs", role="viewer"),
    Route("GET", "/ui/runs/new", new_run.get_new_run, "Show the form that starts a run",
          query=("from", "dataset", "weights"), role="viewer"),
    Route("GET", "/ui/runs/{run_id:str}", run.get_run, "Show a run", role="viewer"),
)
# fmt: on
