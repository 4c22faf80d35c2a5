"""Tills that sell while something goes wrong, and what they saw: a small load, each sale sent until it is decided, as a till does."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx

from kit.clock import SystemClock

RETRY_SECONDS = 0.25
TIMEOUT_SECONDS = 10.0
MEMBERS = 20
_CLOCK = SystemClock()


class DrillFailed(Exception):
    """Something was lost or doubled, or did not come back."""


@dataclass
class Sale:
    """One sale of a till. Times are this machine's."""

    operation_id: str
    began: float
    answered: float = 0.0
    acknowledged_at: datetime | None = None
    tries: int = 0


@dataclass
class Seen:
    """What all tills saw together."""

    sales: list[Sale] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    def acknowledged(self) -> list[Sale]:
        """In the order of their answers."""
        return sorted((each for each in self.sales if each.acknowledged_at), key=lambda each: each.answered)

    def lines(self) -> Iterator[str]:
        """In words."""
        done = self.acknowledged()
        waits = sorted(each.answered - each.began for each in done)
        silences = [after.answered - before.answered for before, after in pairwise(done)]
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.failures.most_common()) or "none"
        yield f"sales: {len(done)} acknowledged, by {self.requests} requests; failed requests: {sum(self.failures.values())} ({kinds})"
        half, most = (_part(waits, share) * 1000 for share in (0.5, 0.99))
        yield f"longest time without any answer to a sale: {max(silences, default=0):.2f} s"
        yield f"a sale took {half:.0f} ms (half of them), {most:.0f} ms (99 %), {max(waits, default=0):.2f} s (the longest)"


class Shop:
    """The gateway as an administrator and its tills see it."""

    def __init__(self, url: str, key: str, *, rate: float = 20.0, tills: int = 4) -> None:
        self.url = url.rstrip("/")
        self.seen = Seen()
        self._pause = tills / rate
        self._count = tills
        self._headers = {"Authorization": f"Bearer {key}"}
        self._random = random.Random(1)
        self._members: list[str] = []
        self._place: dict[str, str] = {}
        self._stopping = asyncio.Event()
        self._selling: list[asyncio.Task[None]] = []

    def http(self) -> httpx.AsyncClient:
        """A client with the administrator's key."""
        return httpx.AsyncClient(base_url=self.url, headers=self._headers, timeout=TIMEOUT_SECONDS, trust_env=False)

    async def open(self) -> None:
        """Finds a store and a till, and signs members up."""
        async with self.http() as http:
            store = (await _read(http, "/v1/stores?limit=1"))["items"][0]
            till = (await _read(http, f"/v1/stores/{store['id']}/tills?limit=1"))["items"][0]
            self._place = {"store_id": store["id"], "till_id": till["id"], "currency": store["currency"]}
            body = {"members": [{"operation_id": f"drill-{uuid4()}"} for _ in range(MEMBERS)]}
            answer = await http.post("/v1/members:import", json=body)
            answer.raise_for_status()
            self._members = [each["member_id"] for each in answer.json()["outcomes"]]

    def start(self) -> None:
        """Tills begin to sell."""
        self._stopping.clear()
        self._selling = [asyncio.create_task(self._sell_on()) for _ in range(self._count)]

    async def close(self, seconds: float = 120) -> None:
        """Tills end when what they began is decided; after `seconds` they give up."""
        self._stopping.set()
        _, waiting = await asyncio.wait(self._selling, timeout=seconds)
        for task in waiting:
            task.cancel()
        for task in self._selling:
            if task.done() and not task.cancelled():
                task.result()

    async def has_sold(self, more: int, seconds: float = 120) -> None:
        """Returns when so many more sales were acknowledged."""
        enough = len(self.seen.acknowledged()) + more
        async with asyncio.timeout(seconds):
            while len(self.seen.acknowledged()) < enough:  # noqa: ASYNC110  # many tills answer, and one waits
                await asyncio.sleep(0.02)

    async def _sell_on(self) -> None:
        async with self.http() as http:
            while not self._stopping.is_set():
                await self._sell(http)
                await asyncio.sleep(self._pause * self._random.uniform(0.5, 1.5))

    async def _sell(self, http: httpx.AsyncClient) -> None:
        sale = Sale(f"drill-{uuid4()}", time.monotonic())
        self.seen.sales.append(sale)
        price = self._random.randint(1, 300)
        body = {
            "operation_id": sale.operation_id,
            **self._place,
            "member_id": self._random.choice([*self._members, None]),
            "sold_at": _CLOCK.now().isoformat(timespec="seconds"),
            "lines": [{"line_no": 1, "sku": "DRILL", "quantity": "1", "unit_price": f"{price}.00", "amount_minor": price * 100}],
            "tenders": [{"type": "cash", "amount_minor": price * 100}],
        }
        while True:
            sale.tries += 1
            self.seen.requests += 1
            try:
                answer = await http.post("/v1/sales", json=body)
            except httpx.HTTPError as error:
                self.seen.failures[type(error).__name__] += 1
            else:
                if answer.status_code == 201:
                    sale.answered, sale.acknowledged_at = time.monotonic(), _CLOCK.now()
                    return
                self.seen.failures[str(answer.status_code)] += 1
                if answer.status_code < 500 and answer.status_code != 429:
                    raise DrillFailed(f"A sale was refused: {answer.status_code} {answer.text}")
            if self._stopping.is_set() and sale.tries > 1 and time.monotonic() - sale.began > 60:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def behind(self) -> int | None:
        """How many events are not in the reports yet; None where nobody can say."""
        today = _CLOCK.now().date()
        days = {"from": str(today), "to": str(today + timedelta(days=1))}
        try:
            async with self.http() as http:
                answer = await http.post("/v1/reports:reconcile", json=days, timeout=5)
            if answer.status_code != 200:
                return None
            said = answer.json()
        except httpx.HTTPError:
            return None
        unread = said["behind"]["unread"]
        return None if unread is None else int(unread) + int(said["behind"]["unpublished"])

    async def times_recorded(self) -> Counter[str]:
        """How often each sale of a drill is in the list of sales."""
        found: Counter[str] = Counter()
        async with self.http() as http:
            cursor: str | None = ""
            while cursor is not None:
                page = await _read(http, f"/v1/sales?limit=500{f'&cursor={cursor}' if cursor else ''}")
                found.update(each["operation_id"] for each in page["items"])
                cursor = page["next_cursor"]
        return found

    async def check_once_each(self, expected: list[Sale]) -> None:
        """Raises DrillFailed unless each is recorded exactly once, and what became of it can be asked for."""
        found = await self.times_recorded()
        lost = [each.operation_id for each in expected if found[each.operation_id] == 0]
        doubled = [name for name, count in found.items() if count > 1]
        if lost or doubled:
            raise DrillFailed(f"{len(lost)} acknowledged sales are lost and {len(doubled)} are doubled: {(lost + doubled)[:3]}")
        async with self.http() as http:
            for each in expected[-50:]:
                said = await _read(http, f"/v1/operations/{each.operation_id}")
                if said["status"] != 201:
                    raise DrillFailed(f"{each.operation_id} was acknowledged, and is said to have been {said['status']}.")


async def _read(http: httpx.AsyncClient, path: str) -> dict[str, Any]:
    answer = await http.get(path)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _part(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
