"""PostgreSQL: one engine a process, transactions that their opener commits, and migrations.

The pool runs in autocommit and `transaction` issues BEGIN and COMMIT itself, so that SQLAlchemy statements and the bare asyncpg
connection (`raw`) of one block are in one transaction, and a connection goes back to the pool without a round trip.

    transaction(engine)                 read committed; commits at the end of the block, rolls back when it raises
    transaction(engine, snapshot=True)  repeatable read, read only: all statements see one state
    reading(engine)                     no transaction: for a single statement

Only this module commits.
"""

import asyncio
import hashlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import MetaData, event, pool
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kit.metrics import DB_POOL_IN_USE, DB_POOL_SIZE, DB_POOL_TIMEOUTS, DB_POOL_WAIT, live

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

    RawConnection = asyncpg.Connection[Any]
else:
    RawConnection = asyncpg.Connection

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
# For so long after it answered, a database is not asked whether it does: a pool that is busy is not one that is away.
FRESH_SECONDS = 2.0
ANSWER_SECONDS = 1.5
POOL_WAIT_SECONDS = 10.0
# A process that stops between two statements must not hold a member's wallet for ever.
IDLE_IN_TRANSACTION = "30s"

MIGRATION_LOCK_WAIT = "120s"
MIGRATION_LOCK_TIMEOUT = "5s"
MIGRATION_STATEMENT_TIMEOUT = "15min"
MIGRATION_POLL_SECONDS = 0.5

# SQLSTATE classes and codes after which the same transaction may be tried again as it is.
# 08: the connection; 53: no room, on the disk too, which an operator mends while clients ask again; 57: the server goes or comes.
TRANSIENT_CLASSES = frozenset({"08", "53", "57"})
TRANSIENT_CODES = frozenset({"40001", "40P01", "55P03"})
STATEMENT_CANCELLED = "57014"


_sizes, _in_use = live(DB_POOL_SIZE), live(DB_POOL_IN_USE)
_waits, _timeouts = DB_POOL_WAIT.of(), DB_POOL_TIMEOUTS.of()
# When the database of an engine answered last.
_answered: WeakKeyDictionary[AsyncEngine, float] = WeakKeyDictionary()


class ConnectionLost(ConnectionError):
    """The connection to the database ended inside a transaction."""


class DatabaseClosed(ConnectionError):
    """The server answers, and lets nobody into the database now."""


class DatabaseMissing(ConnectionError):
    """The server answers, and has no such database: it is being restored, was not made yet, or is named wrongly."""


class DatabaseIsNewer(Exception):
    """The database was migrated by a newer release than this one, which must not write to it."""

    def __init__(self, revision: str, head: str | None) -> None:
        super().__init__(
            f"The database is at revision {revision}, which this release (newest: {head or 'none'}) does not know. Run a newer release."
        )
        self.revision = revision
        self.head = head


class NotMigrated(Exception):
    """The database is older than this release needs, or did not answer."""

    def __init__(self, found: str | None, needed: str, reason: str) -> None:
        state = f"does not answer ({reason})" if reason else f"is at revision {found or 'none'}"
        super().__init__(f"The database {state}, and this release needs {needed}: run its migration, or see why that did not end.")


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did: the revision before (None: an empty database) and after."""

    before: str | None
    after: str | None


def create_engine(url: str, pool_size: int, *, application_name: str = "regulars") -> AsyncEngine:
    """An engine with at most `pool_size` connections, opened when first needed.

    `url` is libpq's form as asyncpg reads it: `postgresql://user@host:port/name`, a Unix socket as `?host=/dir`, `?sslmode=…`.
    A connection that the server closed is noticed when it is taken from the pool, without asking the server.
    """
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=_connector(url, application_name),
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        hide_parameters=True,
        # JSON columns are text both ways: msgspec decodes them into types.
        json_deserializer=str,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    _watch(engine)
    return engine


def _watch(engine: AsyncEngine) -> None:
    """Has the gauges of pools count this one until it is disposed of."""
    inner = engine.sync_engine
    ends = [_sizes.add(lambda: _pool(inner).size()), _in_use.add(lambda: _pool(inner).checkedout())]

    def forget(_engine: object) -> None:
        while ends:
            ends.pop()()

    event.listen(inner, "engine_disposed", forget)


def _pool(engine: "Engine") -> pool.QueuePool:
    return cast("pool.QueuePool", engine.pool)


async def answers(engine: AsyncEngine) -> str:
    """For readiness: nothing when the database answers or did a moment ago, else a word for why not."""
    now = asyncio.get_running_loop().time()
    if now - _answered.get(engine, -FRESH_SECONDS) < FRESH_SECONDS:
        return ""
    try:
        async with asyncio.timeout(ANSWER_SECONDS), reading(engine) as connection:
            await raw(connection).execute("SELECT 1")
    except Exception as error:  # noqa: BLE001  # whatever it is, the database does not do its work
        return "away" if may_retry(error) else type(error).__name__
    return ""


async def connect(url: str, *, application_name: str, settings: Mapping[str, str] | None = None) -> RawConnection:
    """A connection outside any pool, for what belongs to a session: a lock that it holds, `LISTEN`, `settings` of the server's."""
    return await open_connection(
        url,
        {
            "application_name": application_name,
            "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
            # Short statements with known plans: compiling them costs more than it saves.
            "jit": "off",
            "timezone": "UTC",
            **(settings or {}),
        },
    )


async def open_connection(url: str, settings: Mapping[str, str], *, command_timeout: float | None = None) -> RawConnection:
    """A connection with these settings of the server's and no others.

    Raises DatabaseClosed or DatabaseMissing where these codes mean that, which in a transaction mean a fault of the statement. Whom the
    server does not know, or the database does not let in for want of a right, is told so by asyncpg: no waiting mends that.
    """
    url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
    try:
        return await asyncpg.connect(url, timeout=CONNECT_SECONDS, command_timeout=command_timeout, server_settings=dict(settings))
    except asyncpg.ObjectNotInPrerequisiteStateError as error:
        raise DatabaseClosed from error
    except asyncpg.InvalidCatalogNameError as error:
        raise DatabaseMissing from error


def _connector(url: str, application_name: str) -> Callable[[], Awaitable[RawConnection]]:
    return partial(connect, url, application_name=application_name)


def _refuse_closed(dbapi_connection: "DBAPIConnection", entry: "ConnectionPoolEntry", _proxy: object) -> None:
    """Pool event: a connection that died while idle means that its neighbours did too, so the pool begins anew."""
    driver = entry.driver_connection or dbapi_connection
    if driver.is_closed():
        raise InvalidatePoolError


@asynccontextmanager
async def transaction(engine: AsyncEngine, *, snapshot: bool = False) -> AsyncIterator[AsyncConnection]:
    """A transaction that commits at the end of the block and rolls back when the block raises.

    With `snapshot`, it is read only and every statement sees the same state. Raises ConnectionLost when the connection ended before
    the commit was confirmed: whether it happened is not known.
    """
    async with _connection(engine) as connection:
        driver = raw(connection)
        block = driver.transaction(isolation="repeatable_read", readonly=True) if snapshot else driver.transaction()
        try:
            async with block:
                yield connection
            _answered[engine] = asyncio.get_running_loop().time()
        except Exception as error:
            if _is_lost(driver, error):
                raise ConnectionLost from error
            raise
        finally:
            # Open only after a fault while ending it: no one else may be handed this connection.
            if driver.is_closed() or driver.is_in_transaction():
                driver.terminate()
                await connection.invalidate()


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection without a transaction, for a single reading statement.

    Raises ConnectionLost when the connection ended meanwhile: the driver calls the next statement on it a misuse.
    """
    async with _connection(engine) as connection:
        driver = raw(connection)
        try:
            yield connection
            _answered[engine] = asyncio.get_running_loop().time()
        except Exception as error:
            if _is_lost(driver, error):
                raise ConnectionLost from error
            raise


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection of the pool, and how long it was waited for."""
    begun = perf_counter()
    waited = False
    try:
        async with engine.connect() as connection:
            waited = True
            _waits.observe(perf_counter() - begun)
            yield connection
    except PoolTimeout:
        if not waited:
            _timeouts.inc()
        raise


def _is_lost(driver: RawConnection, error: Exception) -> bool:
    """Whether the connection ended. One whose driver is confused is ended here, so that no one else is handed it.

    A server that ends a session between two statements may find the driver in a state that it then takes for a fault of its own.
    """
    if _is_confused(error):
        driver.terminate()
    return driver.is_closed()


def _is_confused(error: BaseException) -> bool:
    """Whether the driver took the end of a session for a fault of its own; the rollback, which it then refuses too, hides that."""
    return any(isinstance(_by_driver(each), asyncpg.InternalClientError) for each in (error, error.__context__) if each is not None)


def _by_driver(error: BaseException) -> BaseException:
    """What asyncpg raised, also where SQLAlchemy translated it twice: into an error of its dialect's, and that into one of its own."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def raw(connection: AsyncConnection) -> RawConnection:
    """The asyncpg connection inside, for set-based statements over arrays. It shares the block's transaction."""
    inner = connection.sync_connection
    driver: RawConnection | None = inner.connection.driver_connection if inner else None
    if driver is None:
        raise ConnectionLost
    return driver


def may_retry(error: BaseException) -> bool:
    """Whether a transaction failed for a reason of the moment: a connection or a lock not had, a deadlock, a full disk, a server restart.

    A connection that a database refuses to everybody (DatabaseClosed, DatabaseMissing, too many of them) is such a reason too.

    After a lost connection it is not known whether the commit happened: only what carries an operation id may be tried again.
    """
    cause = _by_driver(error)
    code = getattr(cause, "sqlstate", None)
    if isinstance(code, str):
        return code in TRANSIENT_CODES or (code[:2] in TRANSIENT_CLASSES and code != STATEMENT_CANCELLED)
    # A server that goes down twice while a connection is had: driver and pool call it a misuse, in words alone.
    if isinstance(cause, asyncpg.InterfaceError | InvalidRequestError) and "closed" in str(cause):
        return True
    if _is_confused(error):
        return True
    invalidated = isinstance(error, DBAPIError) and error.connection_invalidated
    return invalidated or isinstance(cause, OSError | TimeoutError | PoolTimeout)


def forgive_lost_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: as asyncio's own, but a connection that ended while nobody waited for it is no error.

    When a call, or the opening of a connection, is given up in the very moment in which the server goes, the driver leaves its wait behind
    with the connection's end as its exception. Whoever acted on it has been told; only what nobody retrieved is seen here.
    """
    error = context.get("exception")
    if isinstance(error, asyncpg.PostgresConnectionError | ConnectionError) and "future" in context:
        log.warning("a connection ended while nobody waited for it", extra={"error": type(error).__name__})
    else:
        loop.default_exception_handler(context)


async def wait_until_ready(engine: AsyncEngine, seconds: float) -> None:
    """Returns once the database answers; raises its last refusal when it has not for `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = 0.05
    while True:
        try:
            async with reading(engine) as connection:
                await raw(connection).execute("SELECT 1")
        except Exception as error:
            if not may_retry(error) or loop.time() + pause > deadline:
                raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)
        else:
            return


async def current_revision(engine: AsyncEngine) -> str | None:
    """The revision that the database was migrated to; None: it never was."""
    async with reading(engine) as connection:
        if await raw(connection).fetchval("SELECT to_regclass('alembic_version')") is None:
            return None
        found: str | None = await raw(connection).fetchval("SELECT version_num FROM alembic_version")
        return found


def newest_revision(script_location: str) -> str:
    """The revision that this release's code needs at least: the number that its newest migration begins with.

    `script_location`: `package:folder`, as Alembic takes it.
    """
    package, folder = script_location.split(":")
    home = importlib.util.find_spec(package)
    places = home.submodule_search_locations if home is not None else None
    if not places:
        raise LookupError(f"There is no package {package}.")
    return max(path.name[:4] for path in (Path(places[0]) / folder / "versions").glob("[0-9]*.py"))


async def wait_until_migrated(url: str, script_location: str, wait_seconds: float) -> str:
    """Returns the revision of the database once it is what this release needs, or newer.

    For pods that start beside the migration. A server or a database that is not there yet is waited for too.

    Raises:
        NotMigrated: it was not in that time.
    """
    needed = newest_revision(script_location)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + wait_seconds
    found: str | None = None
    engine = create_engine(url, 1)
    try:
        while True:
            try:
                found, reason = await current_revision(engine), ""
            except Exception as error:
                if not may_retry(error):
                    raise
                reason = type(error).__name__
            if found is not None and found >= needed:
                return found
            if loop.time() >= give_up_at:
                raise NotMigrated(found, needed, reason)
            await asyncio.sleep(MIGRATION_POLL_SECONDS)
    finally:
        await engine.dispose()


def advisory_key(name: str) -> int:
    """The number by which PostgreSQL knows the advisory lock `name`: signed, 64 bits.

    Advisory locks are one space of numbers for all of a database. A number chosen by hand was once chosen twice, by `kit` and by a service,
    and the one waited for the other for ever. So a lock has a name that begins with its owner's, and no number is written down.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


async def migrate(url: str, script_location: str) -> Migrated:
    """Brings a database to the newest revision of `script_location` (`package:folder`), each migration in a transaction of its own.

    Several processes may call it at once: one migrates, the others wait and find it done. A migration that cannot have a table's
    lock within seconds fails rather than queue every request behind it, and may be tried again. Raises DatabaseIsNewer, and changes
    nothing, when the database has a revision that `script_location` does not hold.
    """
    # Alembic is needed here only: a serving process does without its memory.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", script_location)
    script = ScriptDirectory.from_config(config)
    head = script.get_current_head()
    known = {revision.revision for revision in script.walk_revisions()}

    def current(connection: "Connection") -> str | None:
        return MigrationContext.configure(connection).get_current_revision()

    def upgrade(connection: "Connection") -> Migrated:
        before = current(connection)
        if before is not None and before not in known:
            raise DatabaseIsNewer(before, head)
        connection.rollback()
        if before != head:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return Migrated(before, head)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=_connector(url, "regulars-migrate"), poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            driver = raw(connection)
            await driver.execute(f"SET lock_timeout = '{MIGRATION_LOCK_WAIT}'")
            await driver.execute("SELECT pg_advisory_lock($1)", advisory_key("kit.migrations"))
            await driver.execute(f"SET lock_timeout = '{MIGRATION_LOCK_TIMEOUT}'")
            await driver.execute(f"SET statement_timeout = '{MIGRATION_STATEMENT_TIMEOUT}'")
            return await connection.run_sync(upgrade)
    finally:
        await engine.dispose()


def run_migrations(metadata: MetaData) -> None:
    """The body of a service's `migrations/env.py`: runs on the connection that `migrate` opened."""
    from alembic import context  # noqa: PLC0415

    context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
