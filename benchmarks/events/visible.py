"""How soon a sale is in the reports while the whole system runs at half its load, and how large outbox, inbox and bus become.

The load is the one of `make bench`: sales through the public API. Beside it ten sales a second are probes, each of a SKU of its own, and
one report after another asks for the probes that were not seen yet. A probe's time runs from before its sale is sent, which is
before it was committed, until the answer that shows it has come: it is never less than from commit to visible.
"""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import httpx

from benchmarks.events.ours import percentiles
from benchmarks.events.sizes import Sizes
from benchmarks.system import System
from kit.clock import SystemClock

CLIENTS = 64
PROBES_A_SECOND = 10
ASK_EVERY_SECONDS = 0.05
DRAIN_SECONDS = 120


async def measure(system: System, *, members: int, closed_seconds: int, open_seconds: int) -> dict[str, Any]:
    """A closed loop for its rate, then half of that with probes; outbox and bus are looked at all the while."""
    ids = await system.add_members(members)
    await system.settle()
    sizes = Sizes({"outbox": system.url("member")} | ({} if system.kafka else {"batches": system.url("bus")}))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{system.port}", timeout=30) as client:
        reports = Reports(client, system)
        await sizes.note("before")
        async with sizes.watched("full load"):
            closed = await system.sell(ids, clients=CLIENTS, seconds=closed_seconds, rate=0, prefix="bench-closed", seed=1)
        drained = await _until_all_visible(system, reports)
        await sizes.note("full load is visible")
        rate = int(closed["rate"] / 2)
        probing = asyncio.create_task(reports.probe(open_seconds))
        before = system.cpu_seconds()
        async with sizes.watched("half load"):
            half = await system.sell(ids, clients=CLIENTS, seconds=open_seconds, rate=rate, prefix="bench-half", seed=1)
        after = system.cpu_seconds()
        seen = await probing
        await _until_all_visible(system, reports)
        await sizes.note("after")
    return {
        "closed": closed,
        "drain_seconds": drained,
        "half": half,
        "probes": len(seen),
        "seconds": percentiles(seen),
        "cpu_us_per_sale": {name: (after[name] - before.get(name, 0.0)) / half["answered"] * 1e6 for name in after},
        "sizes": sizes.found,
        "memory_mib": system.memory_mib(),
    }


class Reports:
    """Sends probes and asks for them."""

    def __init__(self, client: httpx.AsyncClient, system: System) -> None:
        self._client = client
        self._up = system.up
        today = SystemClock().now().date()
        self._days = {"from": str(today - timedelta(days=1)), "to": str(today + timedelta(days=2))}

    async def receipts(self) -> int:
        """How many sales are visible."""
        rows = await self._query({"metrics": ["receipts"], "dimensions": []})
        return int(rows[0][0]) if rows else 0

    async def probe(self, seconds: int) -> list[float]:
        """Seconds from before each probe was sent until a report showed it."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        sent: dict[str, float] = {}
        found: list[float] = []
        sending: set[asyncio.Task[None]] = set()
        number = 0
        while sent or clock() < begun + seconds:
            while number < min(clock() - begun, seconds) * PROBES_A_SECOND:
                sku = f"probe-{number}"
                sent[sku] = begun + number / PROBES_A_SECOND
                sending.add(asyncio.create_task(self._sell(sku)))
                number += 1
            asked = clock()
            if sent:
                filters = [{"field": "sku", "op": "in", "values": list(sent)}]
                rows = await self._query({"metrics": ["items"], "dimensions": ["sku"], "filters": filters, "limit": 5000})
                found += [clock() - sent.pop(row[0]) for row in rows]
            await asyncio.sleep(max(0.0, asked + ASK_EVERY_SECONDS - clock()))
        await asyncio.gather(*sending)
        return found

    async def _sell(self, sku: str) -> None:
        sale = {
            "operation_id": f"bench-{sku}",
            "store_id": self._up["store_id"],
            "till_id": self._up["till_id"],
            "sold_at": SystemClock().now().isoformat(),
            "currency": "CNY",
            "lines": [{"line_no": 1, "sku": sku, "quantity": "1", "unit_price": "9.90", "amount_minor": 990}],
            "tenders": [{"type": "cash", "amount_minor": 990}],
        }
        answer = await self._client.post("/v1/sales", json=sale, headers={"Authorization": f"Bearer {self._up['till_key']}"})
        answer.raise_for_status()

    async def _query(self, query: dict[str, Any]) -> list[list[Any]]:
        answer = await self._client.post(
            "/v1/reports/query", json=query | self._days, headers={"Authorization": f"Bearer {self._up['admin_key']}"}
        )
        if answer.is_error:
            raise RuntimeError(answer.text)
        rows: list[list[Any]] = answer.json()["rows"]
        return rows


async def _until_all_visible(system: System, reports: Reports) -> float:
    """Seconds until the reports show every sale there is."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    connection = await asyncpg.connect(system.url("member"))
    sales: int = await connection.fetchval("SELECT count(*) FROM sales")
    await connection.close()
    while (seen := await reports.receipts()) < sales:
        if clock() > begun + DRAIN_SECONDS:
            raise RuntimeError(f"{seen:,} of {sales:,} sales are in the reports after {DRAIN_SECONDS} seconds")
        await asyncio.sleep(0.05)
    if seen > sales:
        raise RuntimeError(f"{seen:,} sales are in the reports, and {sales:,} were made")
    return clock() - begun
