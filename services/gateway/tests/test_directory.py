"""Keys and stores in memory follow the database, share its readings, and outlast its absence."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.directory import Directory
from kit.db import create_engine, transaction
from kit.problems import Refusal


@pytest.fixture
def statements(engine: AsyncEngine) -> list[str]:
    """The statements that the engine runs from now on."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    return seen


async def test_tables_are_read_only_when_something_changed(engine: AsyncEngine, demo: Any, statements: list[str]) -> None:
    directory = Directory(engine)
    await directory.catch_up()
    assert directory.known_store(demo["store_id"], demo["till_id"]) is not None
    statements.clear()
    await directory.catch_up()
    assert len(statements) == 1
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE stores SET zone = 'Asia/Tokyo'"))
    await directory.catch_up()
    store = directory.known_store(demo["store_id"], demo["till_id"])
    assert store is not None
    assert store.zone == "Asia/Tokyo"


async def test_many_who_miss_at_once_share_readings(engine: AsyncEngine, demo: Any, statements: list[str]) -> None:
    assert demo
    directory = Directory(engine)
    await directory.catch_up()
    statements.clear()
    assert await asyncio.gather(*(directory.find_client(bytes([number]) * 32) for number in range(100))) == [None] * 100
    assert len(statements) <= 2


@pytest.fixture
async def nowhere() -> AsyncIterator[AsyncEngine]:
    """An engine on a server that is not there."""
    made = create_engine("postgresql://nobody@127.0.0.1:1/none", 1)
    yield made
    await made.dispose()


async def test_nothing_unknown_is_decided_while_the_database_is_away(
    engine: AsyncEngine, demo: Any, nowhere: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Directory(engine)
    await directory.catch_up()
    monkeypatch.setattr(directory, "_engine", nowhere)
    with pytest.raises(Refusal, match="gateway_database_unavailable") as refused:
        await directory.find_store(demo["store_id"], "01a2019c-3df7-7000-8508-000000000000")
    assert refused.value.status == 503
    # What is known is served.
    assert directory.known_store(demo["store_id"], demo["till_id"]) is not None
    monkeypatch.setattr(directory, "_engine", engine)
    assert await directory.find_client(b"x" * 32) is None
