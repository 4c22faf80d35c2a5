"""What the facts are, as a whole."""

import asyncio
from collections.abc import Sequence
from typing import Any

from kit.bus.consuming import Handler, consume
from kit.bus.interface import Bus
from kit.clock import SystemClock
from reporting.clickhouse import ClickHouse
from reporting.facts.columns import COLUMNS, FIRST_PURCHASES
from reporting.facts.consumers import GROUP, TOPICS
from tests.bus.world import until

Contents = dict[str, Sequence[Sequence[Any]]]


async def contents(clickhouse: ClickHouse) -> Contents:
    """Every fact of every table, as reports read it; not when it was recorded."""
    found: Contents = {}
    for table, columns in COLUMNS.items():
        kept = [name for name in columns if name != "version"]
        if table == FIRST_PURCHASES:
            statement = f"SELECT member_id, min(first_day) FROM {table} GROUP BY member_id ORDER BY ALL"
        else:
            statement = f"SELECT {', '.join(kept)} FROM {table} ORDER BY ALL"
        found[table] = await clickhouse.query(statement)
    return found


async def one(clickhouse: ClickHouse, statement: str) -> Any:
    """The only value of the only row."""
    ((value,),) = await clickhouse.query(statement)
    return value


async def consume_all(bus: Bus, handler: Handler, *, max_messages: int = 1000) -> None:
    """Consumes until nothing is left to be done."""
    stop = asyncio.Event()
    consuming = asyncio.create_task(
        consume(bus, GROUP, TOPICS, handler, stop=stop, clock=SystemClock(), together=True, max_messages=max_messages)
    )

    async def is_done() -> bool:
        if consuming.done():
            await consuming
        ends = {state.source: state.next_offset for states in (await bus.topics(TOPICS)).values() for state in states}
        committed = {lag.source: lag.committed for lag in await bus.lag(GROUP)}
        return all(committed.get(source) == end for source, end in ends.items() if end)

    try:
        await until(is_done, "everything is consumed")
    finally:
        stop.set()
        await consuming
