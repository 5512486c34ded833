"""Triggers that keep ``run_list``, the counts and the search index equal to ``runs``.

They fire in the transaction of the change. SQLite has a full-text index, ``run_search``, that takes
its texts from ``run_list``. New texts are indexed in batches, since the index costs more
than everything else in the creation of a run. PostgreSQL uses pg_trgm where the extension can be
created; elsewhere a search reads the list in its order.
"""

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError

from runyard.store.tables import metadata

_FOLLOW = """UPDATE run_list SET condition = NEW.condition, duration = NEW.duration,
    training_project = NEW.training_project WHERE org = NEW.org AND run_id = NEW.id"""
_FORGET = "DELETE FROM run_list WHERE org = OLD.org AND run_id = OLD.id"
_ADD = """INSERT INTO run_counts (org, condition, runs) VALUES (NEW.org, NEW.condition, 1)
    ON CONFLICT (org, condition) DO UPDATE SET runs = run_counts.runs + 1"""
_SUBTRACT = """UPDATE run_counts SET runs = runs - 1
    WHERE org = OLD.org AND condition = OLD.condition"""
_INDEX = """INSERT INTO run_search (rowid, name_text, text)
    VALUES (NEW.number, NEW.name_text, NEW.text)"""
_UNINDEX = """INSERT INTO run_search (run_search, rowid, name_text, text)
    VALUES ('delete', OLD.number, OLD.name_text, OLD.text)"""
_IS_CHANGED = """OLD.condition <> NEW.condition OR OLD.duration <> NEW.duration
    OR OLD.training_project IS {distinct} NEW.training_project"""

# name -> (event, condition, statements)
_TRIGGERS = {
    "run_list_follows": (
        "UPDATE OF condition, duration, training_project ON runs", _IS_CHANGED, (_FOLLOW,),
    ),
    "run_list_forgets_deleted": ("UPDATE OF deleted ON runs", "NEW.deleted", (_FORGET,)),
    "run_list_forgets_removed": ("DELETE ON runs", "", (_FORGET,)),
    "run_counts_add": ("INSERT ON run_list", "", (_ADD,)),
    "run_counts_subtract": ("DELETE ON run_list", "", (_SUBTRACT,)),
    "run_counts_change": (
        "UPDATE OF condition ON run_list", "OLD.condition <> NEW.condition", (_SUBTRACT, _ADD),
    ),
}  # fmt: skip
_SEARCH_TRIGGERS = {
    "run_search_add": (
        "UPDATE OF is_indexed ON run_list", "NEW.is_indexed AND NOT OLD.is_indexed", (_INDEX,),
    ),
    "run_search_change": (
        "UPDATE OF name_text, text ON run_list", "OLD.is_indexed", (_UNINDEX, _INDEX),
    ),
    "run_search_remove": ("DELETE ON run_list", "OLD.is_indexed", (_UNINDEX,)),
}  # fmt: skip
_SEARCH = """CREATE VIRTUAL TABLE IF NOT EXISTS run_search USING fts5(name_text, text,
    content='run_list', content_rowid='number', tokenize='trigram', detail=full)"""


def create(connection: Connection) -> None:
    """Create the triggers, and on SQLite the search index."""
    if connection.dialect.name == "sqlite":
        _execute(connection, _SEARCH)
        for name, (when, condition, statements) in (_TRIGGERS | _SEARCH_TRIGGERS).items():
            only = f" WHEN {condition.format(distinct='NOT')}" if condition else ""
            body = "; ".join(statements)
            _execute(connection, f"CREATE TRIGGER {name} AFTER {when}{only} BEGIN {body}; END")
        return
    for name, (when, condition, statements) in _TRIGGERS.items():
        body = "; ".join(statements)
        only = f" WHEN ({condition.format(distinct='DISTINCT FROM')})" if condition else ""
        _execute(
            connection,
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {body}; RETURN NULL; END $$",
        )
        _execute(
            connection,
            f"CREATE TRIGGER {name} AFTER {when} FOR EACH ROW{only} EXECUTE FUNCTION {name}()",
        )


def drop(connection: Connection) -> None:
    """Remove the triggers, and on SQLite the search index, until ``create``."""
    if connection.dialect.name == "sqlite":
        for name in (*_TRIGGERS, *_SEARCH_TRIGGERS):
            _execute(connection, f"DROP TRIGGER IF EXISTS {name}")
        _execute(connection, "DROP TABLE IF EXISTS run_search")
        return
    for name, (when, _, _) in _TRIGGERS.items():
        _execute(connection, f"DROP TRIGGER IF EXISTS {name} ON {when.rpartition(' ')[2]}")


def fill_search(connection: Connection) -> None:
    """Index the texts of every run, after ``create``."""
    if connection.dialect.name == "sqlite":
        _execute(connection, "INSERT INTO run_search (run_search) VALUES ('rebuild')")


def create_trigram_index(connection: Connection) -> bool:
    """Create the trigram indexes of PostgreSQL; return False where the extension is not allowed."""
    savepoint = connection.begin_nested()
    try:
        _execute(connection, "CREATE EXTENSION IF NOT EXISTS pg_trgm")
        for column in ("name_text", "text"):
            _execute(
                connection,
                f"CREATE INDEX IF NOT EXISTS run_list_trigrams_{column} ON run_list "
                f"USING gin ({column} gin_trgm_ops)",
            )
    except DBAPIError:
        savepoint.rollback()
        return False
    savepoint.commit()
    return True


def _execute(connection: Connection, statement: str) -> None:
    connection.execute(text(statement)).close()


@event.listens_for(metadata, "after_create")
def _create_with_tables(_target: object, connection: Connection, **_options: object) -> None:
    """Complete tables that were created without migrations."""
    create(connection)
