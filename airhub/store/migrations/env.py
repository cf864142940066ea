"""Alembic's entry: connect to the URL that ``migrate.py`` hands over and run."""

import sqlalchemy as sa
from alembic import context

from airhub.store.tables import metadata

url = context.config.attributes["url"]
engine = sa.create_engine(url)
with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=url.startswith("sqlite"), transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
