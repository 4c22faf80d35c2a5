"""Both backends of the bus, each as a fixture: what is tested of one is tested of the other."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from kit.bus.connecting import connect
from kit.bus.postgres import MIGRATIONS
from kit.db import create_engine, migrate
from tests.bus.world import World, bus_settings, make_service

BACKENDS = ("postgres", "kafka")


@pytest.fixture(scope="session")
def service_template(make_database: Callable[..., str]) -> str:
    """A service's database to copy."""
    url = make_database()
    asyncio.run(make_service(url))
    return url


@pytest.fixture(scope="session")
def bus_database(make_database: Callable[..., str]) -> str:
    """The PostgreSQL bus of the session."""
    url = make_database()
    asyncio.run(migrate(url, MIGRATIONS))
    return url


@pytest.fixture(params=BACKENDS)
def bus_url(request: pytest.FixtureRequest) -> str:
    """A bus of each backend, which the session's tests share."""
    if request.param == "postgres":
        return str(request.getfixturevalue("bus_database"))
    return f"kafka://{request.getfixturevalue('kafka_bootstrap')}"


@pytest.fixture
async def world(bus_url: str, make_database: Callable[..., str], service_template: str) -> AsyncIterator[World]:
    """A test's part of the bus, and a service's database."""
    database_url = make_database(service_template)
    engine = create_engine(database_url, 6)
    async with connect(bus_settings(bus_url), client_name="test") as bus:
        yield World(bus_url, database_url, engine, bus)
    await engine.dispose()
