"""Run the migrations over the connection that ensq.migrate opened; there is no other way in."""

from __future__ import annotations

from alembic import context

from ensq.schema import metadata

# The transaction is the caller's: all migrations happen, or none. SQLite can change a table only
# by making it anew, which is what batch mode does.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
