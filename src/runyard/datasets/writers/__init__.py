"""Formats out: one module per format, each with a ``Writer``; ``registry`` lists them."""
