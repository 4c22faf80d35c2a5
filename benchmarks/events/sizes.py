"""Rows and bytes of the tables that events pass through."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import asyncpg

EVERY_SECONDS = 0.5


class Sizes:
    """Looks at tables, each given with the URL of its database. `found[when][table]` has rows, dead rows, and bytes with all indexes."""

    def __init__(self, tables: Mapping[str, str]) -> None:
        self._tables = tables
        self.found: dict[str, dict[str, dict[str, int]]] = {}

    async def note(self, when: str) -> None:
        """Looks once; of several looks under the same name the largest figures stay."""
        for table, url in self._tables.items():
            connection = await asyncpg.connect(url)
            try:
                (row,) = await connection.fetch(
                    f"""
                    SELECT (SELECT count(*) FROM {table}) AS rows, pg_total_relation_size('{table}') AS bytes,
                        (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = '{table}') AS dead_rows
                    """
                )
            finally:
                await connection.close()
            largest = self.found.setdefault(when, {}).setdefault(table, dict.fromkeys(row.keys(), 0))
            for name, value in row.items():
                largest[name] = max(largest[name], value)

    @asynccontextmanager
    async def watched(self, when: str) -> AsyncIterator[None]:
        """Looks again and again during the block."""
        looking = asyncio.create_task(self._look(when))
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking

    async def _look(self, when: str) -> None:
        while True:
            await self.note(when)
            await asyncio.sleep(EVERY_SECONDS)
