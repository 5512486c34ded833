"""Measure how the code and the docs read, and hold the figures to limits that never rise.

names.py      words in identifiers and prose
structure.py  complexity and imports
sources.py    the figures of Python files
docs.py       the figures of Markdown pages
limits.py     style-limits.toml
__main__.py   the command scripts/style-report

Only the standard library is used, so that any folder of Python code can be measured.
"""
