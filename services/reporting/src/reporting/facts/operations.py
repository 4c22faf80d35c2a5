"""Facts into their tables."""

import asyncio
from collections.abc import Mapping, Sequence

from kit.metrics import FACTS_INSERTED, TABLE
from reporting.clickhouse import ClickHouse
from reporting.facts.columns import COLUMNS, REBUILT
from reporting.facts.rules import Fact, blocks_of
from reporting.native import rows_in

TABLE.declare(COLUMNS)


async def insert_facts(clickhouse: ClickHouse, facts: Sequence[Fact]) -> None:
    """Inserts what the events say. On return all of it is on disk.

    After an error some of it may be there; inserting it again changes nothing.

    Raises:
        EventInvalid: one of them can never be a fact; nothing was inserted.
        ClickHouseUnavailable, DatabaseError: as `ClickHouse.query` says.
    """
    # Off the loop: ten thousand events take a quarter of a second.
    blocks = await asyncio.to_thread(blocks_of, facts)
    await insert_blocks(clickhouse, blocks)


async def insert_blocks(clickhouse: ClickHouse, blocks: Mapping[str, bytes], *, suffix: str = "") -> None:
    """Inserts blocks that `blocks_of` made, in their order; with a suffix, those of rebuilt facts into the tables of that name."""
    for table, block in blocks.items():
        name = table + suffix if table in REBUILT else table
        await clickhouse.insert(name, COLUMNS[table], block)
        FACTS_INSERTED.of(table).inc(rows_in(block))
