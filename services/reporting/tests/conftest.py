"""One engine for the session, since a process holds one; a database of its own for each test, and a bus where it needs one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path

import pytest

from kit.bus.connecting import connect
from kit.bus.interface import Bus
from kit.bus.postgres import MIGRATIONS
from kit.bus.topics import all_specs, load_topics
from kit.db import migrate as migrate_postgres
from reporting.clickhouse import ClickHouse, embedded, migrate
from tests.bus.world import bus_settings

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's engine keeps its data."""
    return tmp_path_factory.mktemp("clickhouse")


@pytest.fixture
async def empty_clickhouse(engine_folder: Path) -> AsyncIterator[ClickHouse]:
    """A real ClickHouse, with a database that was not migrated."""
    database = f"test_{next(_numbers)}"
    async with ClickHouse(embedded(engine_folder, database), readers=2) as clickhouse:
        yield clickhouse
        await clickhouse.command(f"DROP DATABASE {database} SYNC")


@pytest.fixture
async def clickhouse(empty_clickhouse: ClickHouse) -> ClickHouse:
    """A real ClickHouse with the facts' tables, empty."""
    await migrate(empty_clickhouse)
    return empty_clickhouse


@pytest.fixture(scope="session")
def bus_template(make_database: Callable[..., str]) -> str:
    """A bus with the topics, empty, to copy."""
    url = make_database()

    async def prepare() -> None:
        await migrate_postgres(url, MIGRATIONS)
        async with connect(bus_settings(url), client_name="test") as bus:
            await bus.create_topics(all_specs(load_topics((files("regulars") / "topics.yaml").read_text("utf-8"))))

    asyncio.run(prepare())
    return url


@pytest.fixture
def bus_url(make_database: Callable[..., str], bus_template: str) -> str:
    """A bus of the test's own."""
    return make_database(bus_template)


@pytest.fixture
async def bus(bus_url: str) -> AsyncIterator[Bus]:
    """The test's connection to it."""
    async with connect(bus_settings(bus_url), client_name="test") as connected:
        yield connected
