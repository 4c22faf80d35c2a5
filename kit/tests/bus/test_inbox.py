"""The inbox by itself, on what both backends deliver."""

import asyncio
from datetime import timedelta

import pytest

from kit.bus import inbox
from kit.bus.inbox import keep_new, trim
from kit.bus.interface import Message
from kit.db import raw, reading, transaction
from kit.ids import uuid7
from tests.bus.world import AT, TYPE, World, until

pytestmark = pytest.mark.parametrize("bus_url", ["postgres"], indirect=True)


def message(event_id: str, offset: int = 0) -> Message:
    return Message("test.counted.v1", 0, offset, event_id, uuid7(), TYPE, b"", "", AT)


async def test_what_comes_twice_in_a_batch_or_came_before_is_left_out_and_the_order_kept(world: World) -> None:
    first, second, third = uuid7(), uuid7(), uuid7()
    async with transaction(world.engine) as connection:
        new = await keep_new(raw(connection), "group", [message(third, 1), message(first, 2), message(third, 3)])
        assert [each.offset for each in new] == [1, 2]
    async with transaction(world.engine) as connection:
        new = await keep_new(raw(connection), "group", [message(first, 4), message(second, 5), message(third, 6)])
        assert [each.offset for each in new] == [5]
        assert await keep_new(raw(connection), "other group", [message(first, 7)]) != []


async def test_two_processes_with_the_same_messages_wait_for_each_other(world: World) -> None:
    ids = [uuid7() for _ in range(50)]
    kept: list[str] = []

    async def handle(mine: list[str]) -> None:
        async with transaction(world.engine) as connection:
            new = await keep_new(raw(connection), "group", [message(event_id) for event_id in mine])
            kept.extend(each.event_id for each in new)

    await asyncio.gather(handle(ids), handle(ids[::-1]), handle(ids[10:]), handle(ids[:40]))
    assert sorted(kept) == ids


async def test_ids_go_when_no_bus_can_deliver_them_again(world: World) -> None:
    async with transaction(world.engine) as connection:
        await keep_new(raw(connection), "group", [message(uuid7()) for _ in range(12_000)])
        await raw(connection).execute("UPDATE inbox SET handled_at = now() - interval '38 days 1 hour'")
        fresh = [message(uuid7()) for _ in range(10)]
        await keep_new(raw(connection), "group", fresh)
    assert await trim(world.engine, timedelta(days=31)) == 0
    assert await trim(world.engine, timedelta(days=30)) == 12_000
    async with reading(world.engine) as connection:
        left = await raw(connection).fetch("SELECT event_id::text FROM inbox ORDER BY event_id")
    assert [row[0] for row in left] == [each.event_id for each in fresh]


async def test_an_inbox_is_kept_trimmed_while_its_database_comes_and_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def trimmed(*_: object) -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ConnectionRefusedError
        return 0

    monkeypatch.setattr(inbox, "trim", trimmed)
    trimming = asyncio.create_task(inbox.keep_trimmed(world.engine, timedelta(days=30), every_seconds=0.001))
    await until(lambda: asked >= 3, "it goes on")
    trimming.cancel()
    await asyncio.wait([trimming])
    assert trimming.cancelled()
