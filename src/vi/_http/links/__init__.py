"""Signed links: URLs that carry their own authorization and are requested without our headers."""
