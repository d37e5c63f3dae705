"""The database of a desk: SQLite in WAL mode, or PostgreSQL. One function opens it and brings its tables up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

from rewarddance.apps.annotate.models import Desk
from rewarddance.core.errors import InputError

LOCK = 0x7265776172
"""Number of the advisory lock that migrations hold on PostgreSQL."""


class Database:
    """Transactions on one database. Threads share it; each `read` or `write` is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # threads wait for this lock, because SQLite retries without a queue and some threads would wait very long
        self._turn: AbstractContextManager[Any] = Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end.

        On SQLite it takes the write lock at its beginning, so that two writers never both read before they write.
        """
        with (
            self._turn,
            self.engine.connect().execution_options(immediate=True) as connection,
            Session(connection) as session,
        ):
            yield session
            session.commit()

    def close(self) -> None:
        self.engine.dispose()


def lock_desk(session: Session) -> None:
    """Let no other transaction choose items until this one ends. On SQLite every `write` does so already."""
    session.execute(select(Desk.id).with_for_update())


def open_database(url: str) -> Database:
    """Connect and migrate.

    Args:
        url: `sqlite:///file.db` or `postgresql://user@host/name`.

    Raises:
        InputError: not such an address, or no database answers there.
    """
    try:
        address = make_url(url)
    except ArgumentError:
        raise InputError(f"{url!r}: not a database; use sqlite:///desk.db or postgresql://user@host/name") from None
    kind = address.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise InputError(f"{kind}: this database is not supported; use sqlite:///desk.db or postgresql://...")
    if kind == "postgresql":
        engine = create_engine(address.set(drivername="postgresql+psycopg"), pool_size=20, pool_pre_ping=True)
    else:
        if not address.database or address.database == ":memory:":
            raise InputError(f"{url}: needs a file, so that judgements are kept; use sqlite:///desk.db")
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(address, pool_size=20, connect_args={"timeout": 30, "check_same_thread": False})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        migrate(engine)
    except OperationalError as error:
        engine.dispose()
        reason = str(error.orig).strip().splitlines()[0]
        shown = address.render_as_string(hide_password=True)
        raise InputError(f"{shown}: cannot open the database ({reason})") from None
    return Database(engine)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions
    cursor = connection.cursor()
    for line in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {line}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def migrate(engine: Engine) -> None:
    """Bring the tables up to date. Several servers may do so at once."""
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(immediate=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")
