"""Brings a database to the tables of this version; several services may try at the same time."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine

from service.store.errors import StoreError

SCRIPTS = Path(__file__).parent / "migrations"
LOCK = 0x67726164
"""Number of PostgreSQL's advisory lock, arbitrary but fixed."""


def upgrade(engine: Engine) -> None:
    """Runs the missing migrations, all or none.

    Raises:
        StoreError: a newer version made the database.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            newest = ScriptDirectory.from_config(config).get_current_head()
            raise StoreError(
                f"the database was made by a newer version of gradguard (this one knows up to {newest}): "
                f"install that one, or set --database to another ({error})"
            ) from None
        connection.commit()
