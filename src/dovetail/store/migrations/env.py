"""What alembic runs to bring a database up to date; the connection comes from the caller."""

from __future__ import annotations

from alembic import context

context.configure(**context.config.attributes["configure"])
with context.begin_transaction():
    context.run_migrations()
