"""Runs migrations on the connection that ``runyard.store.migrate`` hands over, inside its transaction."""

from alembic import context

from runyard.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
