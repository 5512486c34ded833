"""Live views of runs in the terminal: ``runyard runs watch`` and ``runyard top``.

A thread reads from the server (``feed``); the main thread reads keys (``keys``) and draws what was
read last (``run_view``, ``runs_view``, ``curve``) with rich. A slow server therefore never delays a
key. Without a terminal, both commands print plain lines instead.
"""
