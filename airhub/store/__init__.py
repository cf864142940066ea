"""The database: records, guarded changes, events, migrations."""

from airhub.store.store import RequestKey, StaleRecord, Store

__all__ = ["RequestKey", "StaleRecord", "Store"]
