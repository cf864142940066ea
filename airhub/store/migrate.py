"""Bring a database to the tables that this version of AirHub needs; ``airhub db`` and the service call it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from airhub.errors import AirHubError

FOLDER = Path(__file__).parent / "migrations"


def upgrade(url: str) -> tuple[str | None, str]:
    """Run the migrations that are missing; return the revisions before and after.

    Raises ``AirHubError`` when the database is newer than this AirHub.
    """
    before = current(url)
    head = _scripts(url).get_current_head()
    assert head is not None, "AirHub ships at least one migration"
    if before == head:
        return before, head
    if before is not None and before not in {script.revision for script in _scripts(url).walk_revisions()}:
        raise AirHubError(
            f"The database is at revision {before}, which this AirHub does not know: it was made by a newer one. "
            "Install that version again, or restore the backup made before the upgrade."
        )
    command.upgrade(_config(url), "head")
    return before, head


def current(url: str) -> str | None:
    """Return the revision of the database; null for an empty one."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def head(url: str = "sqlite://") -> str | None:
    """Return the revision that this AirHub needs."""
    return _scripts(url).get_current_head()


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["url"] = url
    return config


def _scripts(url: str) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(url))
