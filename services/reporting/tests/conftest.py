"""One engine for the session, since a process holds one; a database of its own for each test."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reporting.clickhouse import ClickHouse, embedded, migrate

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
