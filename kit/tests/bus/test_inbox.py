"""The inbox by itself, on what both backends deliver."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from asyncpg import UniqueViolationError
from sqlalchemy.ext.asyncio import AsyncConnection

from kit.bus import inbox
from kit.bus.consuming import Handler
from kit.bus.inbox import trim
from kit.bus.interface import Message
from kit.db import raw, reading, transaction
from kit.ids import uuid7
from tests.bus.world import AT, TYPE, World, until

pytestmark = pytest.mark.parametrize("bus_url", ["postgres"], indirect=True)


def message(event_id: str, offset: int = 0) -> Message:
    return Message("test.counted.v1", 0, offset, event_id, uuid7(), TYPE, b"", "", AT)


def noting(world: World, taken: list[Message], consumer: str = "group") -> Handler:
    """A handler whose effect is to note what it is given."""

    async def effect(_: AsyncConnection, messages: Sequence[Message]) -> None:
        taken.extend(messages)

    return inbox.in_transaction(world.engine, consumer, effect)


async def test_what_comes_twice_in_a_batch_or_came_before_is_left_out_and_the_order_kept(world: World) -> None:
    first, second, third = uuid7(), uuid7(), uuid7()
    taken: list[Message] = []
    handle = noting(world, taken)
    await handle([message(third, 1), message(first, 2), message(third, 3)])
    assert [each.offset for each in taken] == [1, 2]
    await handle([message(first, 4), message(second, 5), message(third, 6)])
    assert [each.offset for each in taken] == [1, 2, 5]
    await handle([message(second, 7)])
    assert [each.offset for each in taken] == [1, 2, 5]
    elsewhere: list[Message] = []
    await noting(world, elsewhere, "other group")([message(first, 7)])
    assert [each.offset for each in elsewhere] == [7]


async def test_a_known_one_among_many_has_no_effect_of_theirs_done_twice(world: World) -> None:
    known, new = message(uuid7(), 1), message(uuid7(), 2)
    calls: list[list[int]] = []

    async def effect(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        calls.append([each.offset for each in messages])
        await raw(connection).execute("CREATE TABLE IF NOT EXISTS done (number bigint)")
        await raw(connection).executemany("INSERT INTO done VALUES ($1)", [(each.offset,) for each in messages])

    handle = inbox.in_transaction(world.engine, "group", effect)
    await handle([known])
    await handle([new, known])
    assert calls == [[1], [2]]
    async with reading(world.engine) as connection:
        assert [row[0] for row in await raw(connection).fetch("SELECT number FROM done ORDER BY 1")] == [1, 2]


async def test_an_effect_that_violates_a_constraint_of_its_own_is_not_taken_for_a_known_event(world: World) -> None:
    calls = 0

    async def effect(connection: AsyncConnection, _: Sequence[Message]) -> None:
        nonlocal calls
        calls += 1
        await raw(connection).execute("CREATE TABLE only_one (id int PRIMARY KEY)")
        await raw(connection).execute("INSERT INTO only_one VALUES (1), (1)")

    with pytest.raises(UniqueViolationError):
        await inbox.in_transaction(world.engine, "group", effect)([message(uuid7())])
    assert calls == 1


async def test_processes_with_the_same_messages_wait_for_each_other(world: World) -> None:
    ids = [uuid7() for _ in range(50)]
    taken: list[Message] = []
    handle = noting(world, taken)
    await asyncio.gather(*(handle([message(each) for each in mine]) for mine in (ids, ids[::-1], ids[10:], ids[:40])))
    assert sorted(each.event_id for each in taken) == ids


async def test_ids_go_when_no_bus_can_deliver_them_again(world: World) -> None:
    handle = noting(world, [])
    await handle([message(uuid7()) for _ in range(12_000)])
    async with transaction(world.engine) as connection:
        await raw(connection).execute("UPDATE inbox SET handled_at = now() - interval '38 days 1 hour'")
    fresh = [message(uuid7()) for _ in range(10)]
    await handle(fresh)
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
