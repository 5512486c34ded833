"""Who changed what: one row in the transaction of every mutation."""

from sqlalchemy import Connection, insert

from runyard.store.tables import audit


def add(connection: Connection, *, org: str, time_ms: int, actor: str, address: str, action: str, target: str) -> None:
    row = {"org": org, "time": time_ms, "actor": actor, "address": address, "action": action, "target": target}
    connection.execute(insert(audit), row)
