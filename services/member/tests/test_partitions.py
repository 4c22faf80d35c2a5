"""Months of the ledger and history tables: made ahead, and nothing is lost where one was not."""

import asyncio
from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from kit.db import raw, reading, transaction
from kit.ids import smallest_uuid7
from member.partitions import MONTHS_AHEAD, PARTITIONED, ensure_partitions

NOW = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)


async def partitions(engine: AsyncEngine) -> dict[str, set[str]]:
    async with reading(engine) as connection:
        rows = await raw(connection).fetch("SELECT inhparent::regclass::text, inhrelid::regclass::text FROM pg_inherits")
    return {table: {child for parent, child in rows if parent == table} for table in PARTITIONED}


def id_at(at: datetime) -> str:
    return smallest_uuid7(int(at.timestamp()) * 1000)


async def record(engine: AsyncEngine, *moments: datetime) -> None:
    """Entries whose ids were drawn at those moments."""
    async with transaction(engine) as connection:
        await raw(connection).execute(
            """
            INSERT INTO points_entries (member_id, programme_id, sequence, entry_id, at, kind, points, pending, debt, expired, balance,
              debt_after)
            SELECT '018f0000-0000-7000-8000-000000000001', 'demo', row_number() OVER (), id, now(), 'earn', 1, 0, 0, 0, 1, 0
            FROM unnest($1::uuid[]) AS id
            """,
            [id_at(at) for at in moments],
        )


async def places(engine: AsyncEngine) -> list[str]:
    async with reading(engine) as connection:
        rows = await raw(connection).fetch("SELECT tableoid::regclass::text FROM points_entries ORDER BY entry_id")
    return [row[0] for row in rows]


async def test_this_month_and_the_next_ones_are_made_once_by_whoever_comes_first(engine: AsyncEngine) -> None:
    await asyncio.gather(*(ensure_partitions(engine, NOW) for _ in range(4)))
    await ensure_partitions(engine, NOW)
    made = await partitions(engine)
    months = ["2026_11", "2026_12", "2027_01", "2027_02"]
    assert len(months) == MONTHS_AHEAD + 1
    for table in PARTITIONED:
        assert made[table] == {f"{table}_default", *(f"{table}_{month}" for month in months)}


async def test_a_row_is_kept_in_the_month_of_its_id_and_in_the_default_where_there_is_none(engine: AsyncEngine) -> None:
    await ensure_partitions(engine, NOW)
    second = timedelta(seconds=1)
    await record(
        engine,
        NOW,
        NOW + second,
        datetime(2027, 3, 1, tzinfo=UTC) - second,
        datetime(2027, 3, 1, tzinfo=UTC),
        datetime(2000, 1, 1, tzinfo=UTC),
    )
    assert await places(engine) == [
        "points_entries_default",
        "points_entries_2026_11",
        "points_entries_2026_12",
        "points_entries_2027_02",
        "points_entries_default",
    ]


async def test_a_month_can_be_made_although_a_clock_that_was_wrong_has_left_rows_of_it(engine: AsyncEngine) -> None:
    """They move into it: the service must start in that month, however long ago the clock was wrong."""
    later = datetime(2029, 5, 5, tzinfo=UTC)
    await record(engine, later, later - timedelta(days=40), later + timedelta(days=400))
    await ensure_partitions(engine, later)
    assert await places(engine) == ["points_entries_default", "points_entries_2029_05", "points_entries_default"]
    await record(engine, later + timedelta(seconds=1))
    assert (await places(engine)).count("points_entries_2029_05") == 2


async def test_a_month_has_the_indexes_and_constraints_of_its_table(engine: AsyncEngine) -> None:
    await ensure_partitions(engine, NOW)
    async with reading(engine) as connection:
        for table in PARTITIONED:
            counts = await raw(connection).fetch(
                """
                SELECT c.relname, (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid),
                  (SELECT count(*) FROM pg_constraint k WHERE k.conrelid = c.oid),
                  (SELECT count(*) FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid WHERE i.indrelid = c.oid)
                FROM pg_class c WHERE c.relname = ANY($1)
                """,
                [f"{table}_default", f"{table}_2026_12"],
            )
            assert len({tuple(row)[1:] for row in counts}) == 1, table
