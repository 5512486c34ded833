"""Where other clients of this API keep what is here in ``vi.api.resources.assets``, so that their imports work."""
