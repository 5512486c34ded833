"""Formats in: one module per format, each with a ``Reader``.

``registry`` lists them and detects a format.
"""
