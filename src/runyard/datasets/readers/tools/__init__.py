"""Annotation tools' own formats: a reader for each, and the recognition of those without one."""
