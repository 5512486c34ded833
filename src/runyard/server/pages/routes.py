"""The list of all pages, fragments and forms, as ``http.routes`` lists the API's routes.

``role`` is required here: the least role that may open a page. A form of a page calls a service
that a route of the API also calls.
"""

from runyard.server.http.route import Route
from runyard.server.pages import new_run, sessions, status, stream
from runyard.server.pages.run.routes import ROUTES as RUN_ROUTES
from runyard.server.pages.runs import actions, export, table

# fmt: off
PAGES = (
    Route("GET", "/ui", table.get_home, "Go to the runs", role="viewer"),
    Route("GET", "/ui/enter", sessions.get_enter, "Show the form to sign in"),
    Route("GET", "/ui/sessions", sessions.get_session, "Get whether the browser is signed in"),
    Route("POST", "/ui/sessions", sessions.post_session, "Sign in with a code or a key",
          statuses=(201,)),
    Route("POST", "/ui/codes", sessions.post_code, "Create a one-time code; needs a key",
          role="viewer", statuses=(201,)),
    Route("POST", "/ui/leave", sessions.leave, "Sign out", role="viewer", statuses=(303,)),
    Route("GET", "/ui/status", status.get_status, "Get the line at the bottom", role="viewer"),
    Route("GET", "/ui/stream", stream.get_stream, "Stream what changes",
          query=("watch", "after"), role="viewer", is_endless=True),

    Route("GET", "/ui/runs", table.list_runs, "List runs", role="viewer"),
    Route("GET", "/ui/runs:rows", table.renew_rows, "Get rows that may have changed",
          role="viewer"),
    Route("GET", "/ui/runs:export", export.export_runs, "Export the list as CSV",
          role="viewer"),
    Route("POST", "/ui/runs:kill", actions.kill_runs, "Kill the selected runs", role="member"),
    Route("POST", "/ui/runs:tag", actions.tag_runs, "Tag the selected runs", role="member"),
    Route("POST", "/ui/runs:delete", actions.delete_runs, "Delete the selected runs",
          role="member"),
    Route("POST", "/ui/runs:saveView", actions.save_view, "Save a view of the list",
          role="member"),
    Route("POST", "/ui/runs:deleteView", actions.delete_view, "Delete a saved view",
          role="member"),
    Route("POST", "/ui/runs:start", actions.start_run, "Start the built-in run",
          role="member", statuses=(303,)),
    Route("GET", "/ui/runs/new", new_run.get_new_run, "Show the form that starts a run",
          query=("from", "dataset", "weights"), role="viewer"),
    *RUN_ROUTES,
)
# fmt: on
