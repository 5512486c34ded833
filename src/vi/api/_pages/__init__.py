"""Paginated lists; public as ``vi.api.pagination``."""
