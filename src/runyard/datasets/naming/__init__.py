"""Which image a row means."""
