"""Annotations: what is said of a picture."""
