"""Helpers of several test modules: an in-process server, and attempts seen by supervisors."""
