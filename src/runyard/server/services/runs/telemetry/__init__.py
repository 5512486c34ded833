"""Output of a trainer: recording it, and reading it back.

ingest.py   what a supervisor ships: log lines, metrics, progress, each exactly once
logs.py     pages of log lines
series.py   metric points
"""
