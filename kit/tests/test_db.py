import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from kit import db, metrics
from kit.db import (
    ConnectionLost,
    DatabaseClosed,
    DatabaseIsNewer,
    DatabaseMissing,
    Migrated,
    NotMigrated,
    answers,
    create_engine,
    current_revision,
    forgive_lost_connections,
    may_retry,
    migrate,
    raw,
    reading,
    transaction,
    wait_until_migrated,
    wait_until_ready,
)
from tests.farewell import hear_farewell


@pytest.fixture
def url(make_database: Callable[..., str]) -> str:
    return make_database()


@pytest.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    made = create_engine(url, 2)
    async with transaction(made) as connection:
        await connection.execute(text("CREATE TABLE marks (mark integer PRIMARY KEY)"))
    yield made
    await made.dispose()


async def marks(engine: AsyncEngine) -> list[int]:
    async with reading(engine) as connection:
        return list((await connection.execute(text("SELECT mark FROM marks ORDER BY mark"))).scalars())


async def test_both_ways_of_writing_are_one_transaction(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("INSERT INTO marks VALUES (1)"))
        await raw(connection).execute("INSERT INTO marks VALUES (2)")
        assert await marks(engine) == []
    assert await marks(engine) == [1, 2]


async def test_a_block_that_raises_leaves_nothing(engine: AsyncEngine) -> None:
    async def write() -> None:
        async with transaction(engine) as connection:
            await connection.execute(text("INSERT INTO marks VALUES (1)"))
            await raw(connection).execute("INSERT INTO marks VALUES (2)")
            raise LookupError

    with pytest.raises(LookupError):
        await write()
    assert await marks(engine) == []


async def test_a_cancelled_block_leaves_nothing_and_its_connection_works_on(engine: AsyncEngine) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with transaction(engine) as connection:
            await raw(connection).execute("INSERT INTO marks VALUES (1)")
            inside.set()
            await raw(connection).execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(write())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [await marks(engine) for _ in range(4)] == [[]] * 4


async def test_a_snapshot_sees_one_state_and_writes_nothing(engine: AsyncEngine) -> None:
    async with transaction(engine, snapshot=True) as connection:
        before = await raw(connection).fetchval("SELECT count(*) FROM marks")
        async with transaction(engine) as other:
            await raw(other).execute("INSERT INTO marks VALUES (1)")
        assert await raw(connection).fetchval("SELECT count(*) FROM marks") == before == 0
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await raw(connection).execute("INSERT INTO marks VALUES (2)")


async def test_a_connection_that_died_idle_is_not_handed_out(engine: AsyncEngine, url: str) -> None:
    async with transaction(engine) as connection:
        driver = raw(connection)
        pid = await driver.fetchval("SELECT pg_backend_pid()")
    gone = asyncio.Event()
    driver.add_termination_listener(lambda _connection: gone.set())
    killer = await asyncpg.connect(url)
    await killer.execute("SELECT pg_terminate_backend($1)", pid)
    await killer.close()
    await gone.wait()
    assert await marks(engine) == []


@pytest.mark.parametrize("statement_by", ["asyncpg", "sqlalchemy"])
async def test_a_connection_lost_inside_is_told_apart_and_may_be_retried(engine: AsyncEngine, statement_by: str) -> None:
    suicide = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(ConnectionLost) as caught:
        async with transaction(engine) as connection:
            await (raw(connection).execute(suicide) if statement_by == "asyncpg" else connection.execute(text(suicide)))
    assert may_retry(caught.value)
    assert await marks(engine) == []


async def test_a_deadlock_may_be_retried_and_a_duplicate_may_not(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await raw(connection).execute("INSERT INTO marks VALUES (1), (2)")
    first_has_it, second_has_it = asyncio.Event(), asyncio.Event()

    async def lock(marks: tuple[int, int], mine: asyncio.Event, other: asyncio.Event) -> None:
        async with transaction(engine) as connection:
            await raw(connection).execute("SELECT FROM marks WHERE mark = $1 FOR UPDATE", marks[0])
            mine.set()
            await other.wait()
            await raw(connection).execute("SELECT FROM marks WHERE mark = $1 FOR UPDATE", marks[1])

    ended = await asyncio.gather(
        lock((1, 2), first_has_it, second_has_it), lock((2, 1), second_has_it, first_has_it), return_exceptions=True
    )
    assert [type(error) for error in ended if error is not None] == [asyncpg.DeadlockDetectedError]
    assert all(may_retry(error) for error in ended if error is not None)

    with pytest.raises(asyncpg.UniqueViolationError) as by_driver:
        async with transaction(engine) as connection:
            await raw(connection).execute("INSERT INTO marks VALUES (1)")
    with pytest.raises(DBAPIError) as by_sqlalchemy:
        async with transaction(engine) as connection:
            await connection.execute(text("INSERT INTO marks VALUES (1)"))
    assert not may_retry(by_driver.value)
    assert not may_retry(by_sqlalchemy.value)


async def test_values_the_driver_refuses_are_no_reason_to_retry(engine: AsyncEngine) -> None:
    with pytest.raises(asyncpg.DataError) as caught:
        async with transaction(engine) as connection:
            await raw(connection).execute("INSERT INTO marks VALUES ($1)", "no number")
    assert not may_retry(caught.value)


async def test_an_error_does_not_quote_the_values_it_was_about(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with transaction(engine) as connection:
            await connection.execute(text("SELECT 1 / (0 * length(:name))"), {"name": "secret-name"})
    assert "secret-name" not in str(caught.value)


async def test_waiting_ends_when_the_time_is_over() -> None:
    nobody = create_engine("postgresql://postgres@127.0.0.1:1/none", 1)
    with pytest.raises(OSError, match="Connect"):
        await wait_until_ready(nobody, 0.1)
    await nobody.dispose()


def make_migrations(folder: Path, package: str, bodies: list[str]) -> str:
    """A package with migrations 0001, 0002, … of these statements; its script location."""
    versions = folder / package / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    (versions.parent / "env.py").write_text(
        "from sqlalchemy import MetaData\n\nfrom kit.db import run_migrations\n\nrun_migrations(MetaData())\n"
    )
    for number, body in enumerate(bodies, start=1):
        before = f'"{number - 1:04}"' if number > 1 else None
        (versions / f"{number:04}_step.py").write_text(
            dedent(
                f"""
                from alembic import op

                revision = "{number:04}"
                down_revision = {before}

                def upgrade():
                    op.execute({body!r})
                """
            )
        )
    return f"{package}:migrations"


async def revision(url: str) -> str | None:
    engine = create_engine(url, 1)
    try:
        return await current_revision(engine)
    finally:
        await engine.dispose()


async def test_one_migrates_and_the_others_find_it_done(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    location = make_migrations(tmp_path, "migrating_at_once", ["CREATE TABLE a (b int)", "ALTER TABLE a ADD c int"])
    assert await revision(url) is None
    done = await asyncio.gather(*(migrate(url, location) for _ in range(4)))
    assert sorted(done, key=lambda each: str(each.before)) == [*[Migrated("0002", "0002")] * 3, Migrated(None, "0002")]
    assert await revision(url) == "0002"


async def test_each_migration_is_a_transaction_of_its_own(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = make_migrations(tmp_path, "broken_at_two", ["CREATE TABLE a (b int)", "CREATE TABLE c (d int); SELECT 1 / 0"])
    with pytest.raises(DBAPIError):
        await migrate(url, broken)
    assert await revision(url) == "0001"
    mended = make_migrations(tmp_path, "mended_at_two", ["CREATE TABLE a (b int)", "CREATE TABLE c (d int)"])
    assert await migrate(url, mended) == Migrated("0001", "0002")


async def test_a_database_of_a_newer_release_is_left_alone(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    newer = make_migrations(tmp_path, "newer_release", ["CREATE TABLE a (b int)", "CREATE TABLE c (d int)"])
    older = make_migrations(tmp_path, "older_release", ["CREATE TABLE a (b int)"])
    await migrate(url, newer)
    with pytest.raises(DatabaseIsNewer, match=r"at revision 0002, which this release \(newest: 0001\) does not know") as caught:
        await migrate(url, older)
    assert (caught.value.revision, caught.value.head) == ("0002", "0001")
    assert await revision(url) == "0002"


async def test_a_migration_does_not_queue_behind_a_lock(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("kit.db.MIGRATION_LOCK_TIMEOUT", "50ms")
    await migrate(url, make_migrations(tmp_path, "before_the_lock", ["CREATE TABLE a (b int)"]))
    later = make_migrations(tmp_path, "behind_the_lock", ["CREATE TABLE a (b int)", "ALTER TABLE a ADD c int"])
    engine = create_engine(url, 1)
    async with transaction(engine) as connection:
        await raw(connection).execute("LOCK TABLE a")
        with pytest.raises(DBAPIError) as caught:
            await migrate(url, later)
    await engine.dispose()
    assert may_retry(caught.value)
    assert await migrate(url, later) == Migrated("0001", "0002")


async def test_a_reader_whose_connection_ended_may_try_again(engine: AsyncEngine) -> None:
    async def read_on() -> None:
        async with reading(engine) as connection:
            raw(connection).terminate()
            await raw(connection).fetchval("SELECT 1")

    with pytest.raises(ConnectionLost) as lost:
        await read_on()
    assert may_retry(lost.value)
    async with reading(engine) as connection:
        assert await raw(connection).fetchval("SELECT 1") == 1


def test_a_connection_that_was_closed_before_it_was_used_may_be_had_again() -> None:
    assert may_retry(InvalidRequestError("This connection is closed"))
    assert may_retry(asyncpg.InterfaceError("connection is closed"))
    assert not may_retry(asyncpg.InterfaceError("cannot perform operation: another operation is in progress"))


async def test_a_commit_that_is_refused_for_its_data_may_not_be_retried(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await raw(connection).execute("CREATE TABLE later (mark integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        async with transaction(engine) as connection:
            await raw(connection).execute("INSERT INTO later VALUES (1), (1)")
    assert not may_retry(caught.value)


@pytest.mark.parametrize(
    "error, level",
    [
        (asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"), "WARNING"),
        (ConnectionError("unexpected connection_lost() call"), "WARNING"),
        (ValueError("a fault of ours"), "ERROR"),
    ],
)
async def test_only_a_lost_connection_may_end_a_wait_that_nobody_waits_for(
    error: Exception, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(forgive_lost_connections)
    caplog.set_level(logging.WARNING)
    loop.create_future().set_exception(error)
    gc.collect()
    assert [record.levelname for record in caplog.records] == [level]


@pytest.mark.parametrize("block", [reading, transaction])
async def test_a_connection_whose_driver_is_confused_is_given_up(engine: AsyncEngine, block: Any) -> None:
    """As when the server ends a session between two statements and the driver takes that for a fault of its own."""
    confused = asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")
    assert may_retry(confused)
    async with block(engine) as connection:
        before = await raw(connection).fetchval("SELECT pg_backend_pid()")
    with pytest.raises(ConnectionLost):
        async with block(engine):
            raise confused
    async with block(engine) as connection:
        assert await raw(connection).fetchval("SELECT pg_backend_pid()") != before


async def test_a_session_that_ends_before_its_connection_does_is_given_up(engine: AsyncEngine) -> None:
    """The farewell is read and the end of the stream is not: the driver refuses the next statement, and then the rollback."""

    async def write() -> None:
        async with transaction(engine) as connection:
            driver = raw(connection)
            await driver.execute("INSERT INTO marks VALUES (1)")
            hear_farewell(driver)
            await driver.copy_to_table("marks", source=BytesIO(b"2\n"))

    with pytest.raises(ConnectionLost) as caught:
        await write()
    assert may_retry(caught.value)
    assert isinstance(caught.value.__cause__, asyncpg.InterfaceError)
    assert isinstance(caught.value.__cause__.__context__, asyncpg.InternalClientError)
    assert await marks(engine) == []


async def test_a_session_that_ends_while_a_pool_begins_may_be_retried(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy asks a server that is new to it how it isolates, and translates what the driver raises."""
    engine = create_engine(url, 1)
    original = engine.dialect.get_default_isolation_level
    ended: list[object] = []

    def ended_before(connection: Any) -> Any:
        if not ended:
            hear_farewell(connection.driver_connection)
        ended.append(connection.driver_connection)
        return original(connection)

    monkeypatch.setattr(engine.dialect, "get_default_isolation_level", ended_before)
    with pytest.raises(DBAPIError) as caught:
        async with transaction(engine):
            pass
    assert "cannot switch to state" in str(caught.value)
    assert may_retry(caught.value)
    async with transaction(engine) as connection:
        assert raw(connection) is ended[1] is not ended[0]
    await engine.dispose()


async def test_a_pool_is_measured_while_it_is_there(url: str) -> None:
    def figures() -> list[float]:
        return [next(iter(metric.collector.collect())).samples[0].value for metric in (metrics.DB_POOL_SIZE, metrics.DB_POOL_IN_USE)]

    size, used = figures()
    waited = sum(bucket.get() for bucket in metrics.DB_POOL_WAIT.of()._buckets)
    engine = create_engine(url, 3)
    async with transaction(engine), reading(engine):
        assert figures() == [size + 3, used + 2]
    assert figures() == [size + 3, used]
    assert sum(bucket.get() for bucket in metrics.DB_POOL_WAIT.of()._buckets) == waited + 2
    await engine.dispose()
    assert figures() == [size, used]


async def test_a_wait_in_vain_is_counted_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "POOL_WAIT_SECONDS", 0.01)
    engine = create_engine(url, 1)
    before = metrics.DB_POOL_TIMEOUTS.of()._value.get()
    with pytest.raises(PoolTimeout):
        async with transaction(engine), transaction(engine):
            pass
    assert metrics.DB_POOL_TIMEOUTS.of()._value.get() == before + 1
    await engine.dispose()


async def test_a_busy_pool_answers_and_a_database_that_is_away_does_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = create_engine(url, 1)
    assert await answers(engine) == ""
    async with reading(engine):
        monkeypatch.setattr(db, "ANSWER_SECONDS", 0.05)
        # All connections are taken, and the last answer is recent.
        assert await answers(engine) == ""
        monkeypatch.setattr(db, "FRESH_SECONDS", 0.0)
        assert await answers(engine) == "away"
        monkeypatch.setattr(db, "ANSWER_SECONDS", 10)
    assert await answers(engine) == ""
    await engine.dispose()
    nowhere = create_engine("postgresql://nobody@127.0.0.1:1/nowhere", 1)
    assert await answers(nowhere) == "away"


@pytest.mark.parametrize(
    "close, reopen, reason",
    [
        ('ALTER DATABASE "{}" ALLOW_CONNECTIONS false', 'ALTER DATABASE "{}" ALLOW_CONNECTIONS true', DatabaseClosed),
        ('ALTER DATABASE "{}" RENAME TO "{}_aside"', 'ALTER DATABASE "{}_aside" RENAME TO "{}"', DatabaseMissing),
        ('ALTER DATABASE "{}" CONNECTION LIMIT 0', 'ALTER DATABASE "{}" CONNECTION LIMIT -1', DBAPIError),
    ],
)
async def test_a_database_that_its_server_lets_nobody_into_is_away(
    url: str, postgres_url: str, close: str, reopen: str, reason: type[Exception]
) -> None:
    name = urlsplit(url).path[1:]
    aside = await asyncpg.connect(postgres_url)
    # No limit holds a superuser back.
    await aside.execute(f'CREATE ROLE "{name}" LOGIN')
    engine = create_engine(url.replace("//postgres@", f"//{name}@"), 1)
    try:
        await aside.execute(close.format(name, name))
        with pytest.raises(reason) as refused:
            await marks(engine)
        assert may_retry(refused.value)
        assert await answers(engine) == "away"
        await aside.execute(reopen.format(name, name))
        assert await answers(engine) == ""
    finally:
        await engine.dispose()
        await aside.execute(f'DROP ROLE "{name}"')
        await aside.close()


async def test_whom_a_server_does_not_know_need_not_wait(url: str) -> None:
    engine = create_engine(url.replace("//postgres@", "//no_such_role@"), 1)
    with pytest.raises(DBAPIError, match="no_such_role") as refused:
        await marks(engine)
    assert not may_retry(refused.value)
    assert await answers(engine) == "DBAPIError"
    await engine.dispose()


async def test_a_database_that_is_not_made_yet_is_waited_for(url: str) -> None:
    with pytest.raises(NotMigrated, match="does not answer \\(DatabaseMissing\\)"):
        await wait_until_migrated(url.replace("/test_", "/later_"), "kit.bus:migrations", 0)
