"""Deterministic simulation of the run protocol, with faults that a seed repeats exactly.

Real code: ``runyard.server.services`` on the real tables in SQLite, ``runyard.supervisor.step``,
``runyard.controller.decide``. Simulated: time, network, processes, files, and the effects around
the two pure functions, which mirror ``supervisor/main.py`` and ``controller/main.py`` action by
action.
"""
