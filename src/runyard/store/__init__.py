"""The only SQL of Runyard. ``Store`` opens the database; the modules named after nouns hold the queries."""

from runyard.store.database import Store, StoreUnavailable

__all__ = ["Store", "StoreUnavailable"]
