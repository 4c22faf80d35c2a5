"""The same over HTTP, as with a ClickHouse server."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from kit.bus.interface import Bus
from kit.ids import uuid7
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable, embedded, migrate, open_clickhouse
from reporting.facts.consumers import FactsHandler
from reporting.settings import StorageSettings
from services.reporting.tests.contents import consume_all, contents, one
from services.reporting.tests.events import points, reversal, sale, signed_up, unlinked_return
from services.reporting.tests.server import serving


def storage(url: str) -> StorageSettings:
    return StorageSettings(clickhouse_url=url, clickhouse_password_file="", data_dir="", readers=2, log_level="INFO")


@pytest.fixture
async def server_url(engine_folder: Path) -> AsyncIterator[str]:
    """A database of the test's own on a server."""
    database = f"test_{uuid7().replace('-', '')}"
    given = os.environ.get("TEST_CLICKHOUSE_URL")
    if given:
        async with open_clickhouse(storage(given)) as server:
            await server.command(f"CREATE DATABASE {database}")
            yield f"{given.rstrip('/')}/{database}"
            await server.command(f"DROP DATABASE {database} SYNC")
        return
    async with ClickHouse(embedded(engine_folder, database), readers=1) as engine:
        await engine.query("SELECT 1")
        with serving(engine_folder) as url:
            yield f"{url}/{database}"
        await engine.command(f"DROP DATABASE {database} SYNC")


@pytest.fixture
async def server(server_url: str) -> AsyncIterator[ClickHouse]:
    """A migrated one."""
    async with open_clickhouse(storage(server_url)) as clickhouse:
        await migrate(clickhouse)
        yield clickhouse


async def test_facts_are_the_same_on_a_server(server: ClickHouse, clickhouse: ClickHouse, bus: Bus) -> None:
    member = uuid7()
    sale_id, sold = sale(member=member, lines=[("A100", "1", 189_90), ("回头客", "2.5", 199_80)])
    returned = reversal(sale_id, member=member, lines=[(2, "1.5", 119_88)])
    await bus.publish([signed_up(member), sold, points(member, (1, "earn", 389)), returned, unlinked_return()])
    await consume_all(bus, FactsHandler(server))
    on_server = await contents(server)
    assert [len(rows) for rows in on_server.values()] == [2, 1, 2, 2, 1, 1, 1, 0]
    sources = [state.source for states in (await bus.topics()).values() for state in states]
    await bus.set_offsets("reporting", dict.fromkeys(sources, 0))
    await consume_all(bus, FactsHandler(clickhouse))
    assert on_server == await contents(clickhouse)


async def test_parameters_and_settings_reach_a_server(server: ClickHouse) -> None:
    for _ in range(2):
        await server.command(
            "INSERT INTO sales (sale_id, currency) VALUES ({id:UUID}, {currency:String})", {"id": uuid7(1), "currency": "C'N\\Y"}
        )
    await server.command("INSERT INTO sales SELECT * FROM sales LIMIT 1")
    assert await server.query("SELECT DISTINCT currency FROM sales WHERE currency = {c:String}", {"c": "C'N\\Y"}) == [("C'N\\Y",)]
    assert await one(server, "SELECT count() FROM sales") == 2
    ((plain,),) = await server.query("SELECT count() FROM sales", settings={"final": 0, "optimize_on_insert": 0})
    assert plain >= 2


async def test_what_a_server_refuses_is_an_error_and_no_outage(server: ClickHouse) -> None:
    with pytest.raises(DatabaseError):
        await server.query("SELECT nothing FROM nowhere")
    assert await one(server, "SELECT 1") == 1


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with open_clickhouse(storage("http://127.0.0.1:9/reporting")) as clickhouse:
        with pytest.raises(ClickHouseUnavailable):
            await clickhouse.query("SELECT 1")
