"""Months of the ledger and history tables.

Their ids are UUIDv7, so a month of recording is a range of ids. Months are made ahead; what a wrong clock dates outside them falls
into the default partition, is found all the same, and moves into its month when that is made.
"""

import asyncio
import logging
from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.db import advisory_key, transaction
from kit.ids import smallest_uuid7

# Each table and the id that its months are ranges of.
PARTITIONED = {
    "points_entries": "entry_id",
    "sales": "sale_id",
    "sale_lines": "sale_id",
    "reversals": "reversal_id",
    "unlinked_returns": "return_id",
}
MONTHS_AHEAD = 3
_DAY_SECONDS = 24 * 3600

_log = logging.getLogger(__name__)


def _month_start(now: datetime, months: int) -> datetime:
    month = now.year * 12 + now.month - 1 + months
    return datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)


async def ensure_partitions(engine: AsyncEngine, now: datetime) -> None:
    """Makes the partitions of this month and the next ones where they are missing. Safe to call from several processes at once."""
    async with transaction(engine) as connection:
        # One at a time; and never a queue of sales behind a lock that is not to be had.
        await connection.execute(text("SET LOCAL lock_timeout = '3s'"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": advisory_key("member.partitions")})
        for ahead in range(MONTHS_AHEAD + 1):
            start, end = _month_start(now, ahead), _month_start(now, ahead + 1)
            bounds = [smallest_uuid7(int(at.timestamp()) * 1000) for at in (start, end)]
            for table, key in PARTITIONED.items():
                name = f"{table}_{start:%Y_%m}"
                if (await connection.execute(text("SELECT to_regclass(:name)"), {"name": name})).scalar():
                    continue
                # Attached, not made in place: sales go on meanwhile, and the default partition may hold rows of the month.
                await connection.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
                await connection.execute(
                    text(f"""
                        WITH moved AS (DELETE FROM {table}_default WHERE {key} >= '{bounds[0]}' AND {key} < '{bounds[1]}' RETURNING *)
                        INSERT INTO {name} SELECT * FROM moved
                    """)
                )
                await connection.execute(
                    text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{bounds[0]}') TO ('{bounds[1]}')")
                )


async def keep_partitions(engine: AsyncEngine, clock: Clock) -> None:
    """Runs for as long as the service: makes months ahead once a day. A failure is logged and tried again the next day."""
    while True:
        await asyncio.sleep(_DAY_SECONDS)
        try:
            await ensure_partitions(engine, clock.now())
        except Exception:  # noqa: BLE001  # months are made well ahead: the next day is early enough
            _log.exception("months could not be made ahead")
