"""Runs migrations on the connection that `database.migrate` hands over, in its transaction."""

from alembic import context

from rewarddance.apps.annotate.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
