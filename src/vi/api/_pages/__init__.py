"""Lists that come in pages; public as ``vi.api.pagination``."""
