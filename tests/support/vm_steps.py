"""The cost of a query, independent of the machine."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from runyard.store import Store


def count_steps(store: Store, work: Callable[[Connection], Any]) -> int:
    """Return the number of SQLite's virtual machine instructions for some work, in hundreds."""
    count = 0

    def add_hundred() -> None:
        nonlocal count
        count += 1

    def work_counted(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(add_hundred, 100)
        try:
            work(connection)
        finally:
            driver.set_progress_handler(None, 0)

    store.read(work_counted)
    return count
