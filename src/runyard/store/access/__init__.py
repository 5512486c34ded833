"""Rows of those who may use the server: keys, sessions of browsers, and machines."""
