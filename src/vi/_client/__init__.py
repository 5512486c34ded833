"""The two clients, and where they find their credentials; public as ``vi.client``."""
