"""The run protocol in a world that can be broken at will and repeated exactly.

Real code: ``runyard.server.services`` over the real tables on SQLite, ``runyard.supervisor.step``,
``runyard.controller.decide``. Simulated: time, network, processes, files, and the thin rims around the two pure cores,
which mirror ``supervisor/main.py`` and ``controller/main.py`` action by action.
"""
