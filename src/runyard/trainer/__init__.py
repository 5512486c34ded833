"""The training engine: flow -> plan -> data -> model -> loop -> evaluation -> checkpoint.

The only place with torch. Files are its protocol (``runyard.rundir``): it reads ``run.json`` of an attempt's folder and
writes events, checkpoints and a result; it talks to no network and no database. Read ``train.py`` first: the loop is
told there in order, and asks the other pages whether it is their turn.
"""
