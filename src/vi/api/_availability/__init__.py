"""Patience with a server that is unavailable for a while."""
