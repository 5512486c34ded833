"""Implementation of the two clients and of credential lookup; public as ``vi.client``."""
