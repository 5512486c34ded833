"""Aliases of ``vi.api.resources.assets`` for imports written for other clients of this API."""
