"""The store, the only part with SQL.

``Store`` opens the database; modules named after nouns hold the queries.
"""

from runyard.store.database import Store, StoreUnavailable

__all__ = ["Store", "StoreUnavailable"]
