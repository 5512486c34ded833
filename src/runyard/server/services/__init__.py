"""The rules of runs, leases, flows, models and keys: no HTTP, no SQL."""
