"""Watching runs: their state after each event."""
