"""The training engine: flow, plan, data, model, loop, evaluation, checkpoint.

The only package that imports torch. It communicates by files (``runyard.rundir``): it reads
``run.json`` in an attempt's folder, and writes events, checkpoints and a result. It uses no network
and no database. Read ``train.py`` first: it has the loop, which calls all other modules.
"""
