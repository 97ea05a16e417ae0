"""Alembic's environment: runs the revisions on the connection that `gateway.storage.database` hands over."""

from alembic import context

from gateway.storage.database import declared

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=declared(),
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
