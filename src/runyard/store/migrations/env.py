"""Run migrations on the connection that ``runyard.store.migrate`` passes, in its transaction."""

from alembic import context

from runyard.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
