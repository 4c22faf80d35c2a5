"""Servers that go and come back under those that use the bus: the bus's own, and that of the service's database."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from kit.bus.connecting import connect
from kit.bus.postgres import MIGRATIONS
from kit.db import create_engine, migrate
from kit.ids import uuid7
from regulars_cli.up import CannotStart
from regulars_cli.up.kafka import LocalKafka
from regulars_cli.up.postgres import EmbeddedPostgres
from tests.bus.world import World, bus_settings, make_service, moment, until

pytestmark = pytest.mark.timeout(240)
DURABLE = {"shared_buffers": "16MB", "max_connections": "50"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder into which a server's own user may go."""
    with tempfile.TemporaryDirectory(prefix="regulars-test-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture(params=["postgres", "kafka"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[EmbeddedPostgres | LocalKafka]:
    """A server of the test's own, of each backend."""
    made: EmbeddedPostgres | LocalKafka
    if request.param == "postgres":
        made = EmbeddedPostgres(folder / "data", settings=DURABLE)
    else:
        made = LocalKafka(folder / "kafka")
        try:
            made.prepare()
        except CannotStart as error:
            pytest.skip(str(error))
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def world(server: EmbeddedPostgres | LocalKafka, make_database: Callable[..., str], service_template: str) -> AsyncIterator[World]:
    """A bus on that server; the service's database is elsewhere."""
    if isinstance(server, EmbeddedPostgres):
        url = server.url()
        await migrate(url, MIGRATIONS)
    else:
        url = f"kafka://{server.bootstrap}"
    database_url = make_database(service_template)
    engine = create_engine(database_url, 6)
    async with connect(bus_settings(url), client_name="test") as bus:
        yield World(url, database_url, engine, bus)
    await engine.dispose()


@asynccontextmanager
async def recording(world: World, topic: str, keys: list[str]) -> AsyncIterator[None]:
    """Events become true all the while."""
    over = asyncio.Event()

    async def record() -> None:
        while not over.is_set():
            await world.record(topic, keys)
            await moment(0.01)

    task = asyncio.create_task(record())
    yield
    over.set()
    await task


async def test_the_server_of_the_bus_may_restart_at_any_time(world: World, server: EmbeddedPostgres | LocalKafka) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = [uuid7() for _ in range(10)]
    async with world.relaying() as relay, world.consuming(group, [topic]):
        async with recording(world, topic, keys):
            for _ in range(2):
                done, published = len(await world.effects(group)), relay.state().published
                await world.until_done(group, done + 20)
                await asyncio.to_thread(server.stop)
                waiting = await world.waiting()

                async def grows(waiting: int = waiting) -> bool:
                    return await world.waiting() > waiting + 50

                await until(grows, "events become true and wait")
                await asyncio.to_thread(server.start)
                await until(lambda published=published: relay.state().published > published, "events are published again")  # type: ignore[misc]
        await world.until_done(group, sum(map(len, world.recorded.values())), seconds=120)
        await world.until_lag_is_none(group)
    await world.assert_all_once_and_in_order(group)
    assert await world.waiting() == 0


async def test_the_database_of_the_service_may_restart_at_any_time(folder: Path, bus_url: str) -> None:
    with EmbeddedPostgres(folder / "data", settings=DURABLE) as server:
        await make_service(server.url())
        engine = create_engine(server.url(), 4)
        async with connect(bus_settings(bus_url), client_name="test") as bus:
            world = World(bus_url, server.url(), engine, bus)
            topic, group = await world.new_topic(), world.new_group()
            keys = [uuid7() for _ in range(10)]
            async with world.relaying() as relay, world.consuming(group, [topic]):
                for times in range(1, 4):
                    await world.record(topic, keys, 30)
                    relay.nudge()
                    await until(lambda times=times: relay.state().published > 300 * (times - 1), "some are published")  # type: ignore[misc]
                    await asyncio.to_thread(server.stop)
                    await asyncio.to_thread(server.start)
                await world.until_done(group, 900)
                await world.until_lag_is_none(group)
            await world.assert_all_once_and_in_order(group)
        await engine.dispose()


@pytest.mark.parametrize("server", ["postgres"], indirect=True)
async def test_every_session_may_be_ended_again_and_again(world: World, server: EmbeddedPostgres) -> None:
    """Those of the relay at the service's database, and those of relay and consumer at the bus."""
    topic, group = await world.new_topic(), world.new_group()
    keys = [uuid7() for _ in range(10)]
    ending = [await asyncpg.connect(world.database_url), await asyncpg.connect(server.url())]
    async with world.relaying(), world.consuming(group, [topic]):
        for times in range(1, 11):
            await world.record(topic, keys, 10)
            connection = ending[times % 2]
            name = urlsplit(world.database_url).path[1:] if times % 2 == 0 else "postgres"
            await connection.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = $1 AND pid <> pg_backend_pid() AND (application_name LIKE '%relay%' OR application_name LIKE '%consumer%')
                """,
                name,
            )
            await world.until_done(group, times * 50)
        await world.until_done(group, 1000)
        await world.until_lag_is_none(group)
    for connection in ending:
        await connection.close()
    await world.assert_all_once_and_in_order(group)


CLOSED = ("ALTER DATABASE postgres ALLOW_CONNECTIONS false", "ALTER DATABASE postgres ALLOW_CONNECTIONS true")
AWAY_WHILE_RESTORED = ("ALTER DATABASE postgres RENAME TO aside", "ALTER DATABASE aside RENAME TO postgres")


@pytest.mark.parametrize("server", ["postgres"], indirect=True)
@pytest.mark.parametrize("close, reopen", [CLOSED, AWAY_WHILE_RESTORED])
async def test_a_database_of_the_bus_that_its_server_lets_nobody_into_is_waited_for(
    world: World, server: EmbeddedPostgres, close: str, reopen: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = await world.new_topic(), world.new_group()
    keys = [uuid7() for _ in range(10)]
    aside = await asyncpg.connect(server.url().replace("/postgres?", "/template1?"))
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('postgres', 'aside')"

    async def is_closed() -> bool:
        await aside.execute(end_all)
        try:
            await aside.execute(close)
        except asyncpg.ObjectInUseError:
            # One of them came back between the two statements.
            return False
        await aside.execute(end_all)
        return True

    async with world.relaying() as relay, world.consuming(group, [topic]) as consuming:
        await world.record(topic, keys)
        relay.nudge()
        await world.until_done(group, 10)
        await until(is_closed, "the database is closed")
        await world.record(topic, keys)
        relay.nudge()
        await until(lambda: relay.state().is_bus_away, "the relay finds it away")
        await until(lambda: any(record.message.startswith("the bus is away") for record in caplog.records), "the consumer finds it away")
        assert not consuming.done()
        assert all(hasattr(record, "error") for record in caplog.records if record.message.startswith("the bus is away"))
        await aside.execute(reopen)
        await world.until_done(group, 20)
    await aside.close()
    await world.assert_all_once_and_in_order(group)
