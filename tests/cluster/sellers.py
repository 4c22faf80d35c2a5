"""Tills that sell without a pause, and count whatever did not go as it should.

A till has one connection and keeps it, as real ones do. A sale that gets no answer, or another than 201, counts as failed at once, however
short the outage; the till then asks the very same again until it is decided, so that in the end every sale is in the ledger once.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

import msgspec

from kit.clock import SystemClock
from kit.ids import uuid7
from kit.waiting import wait_at_most
from tests.integration.api import Json
from tests.integration.load import Answer, Connection

ANSWER_SECONDS = 20
LONGEST_WAIT_SECONDS = 120
# A till that failed asks again after this.
PAUSE_SECONDS = 0.1


@dataclass
class Sold:
    """What became of a load: every sale's operation id and net, and what failed on the way."""

    net_minor: dict[str, int] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    # The longest time in which no sale at all was answered.
    longest_silence: float = 0.0
    elapsed: float = 0.0
    _last: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, now: float, seconds: float) -> None:
        """One sale was answered."""
        if self._last:
            self.longest_silence = max(self.longest_silence, now - self._last)
        self._last = now
        self.seconds.append(seconds)
        self._changed.set()

    async def more(self, sales: int) -> None:
        """Returns when so many more sales were answered."""
        wanted = len(self.seconds) + sales
        async with asyncio.timeout(LONGEST_WAIT_SECONDS):
            while len(self.seconds) < wanted:
                self._changed.clear()
                await self._changed.wait()

    def percentile(self, share: float) -> float:
        """Seconds within which that share of all sales was decided, with all that was asked again."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0

    def line(self) -> str:
        """The figures in one line."""
        failed = ", ".join(f"{count} × {what}" for what, count in sorted(self.failed.items())) or "0"
        return (
            f"{len(self.seconds)} sales in {self.elapsed:.0f} s, failed requests: {failed}; "
            f"p50 {self.percentile(0.5) * 1000:.0f} ms, p99 {self.percentile(0.99) * 1000:.0f} ms, "
            f"longest time without an answer {self.longest_silence:.2f} s"
        )


class Tills:
    """Tills of one store that sell to a few members."""

    def __init__(self, url: str, key: str, store_id: str, till_id: str, members: Sequence[str]) -> None:
        self._address = urlsplit(url).hostname, urlsplit(url).port
        self._head = f"Host: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        self._store_id, self._till_id, self._members = store_id, till_id, members

    @asynccontextmanager
    async def selling(self, tills: int, *, pause: float = 0.0, seed: int = 1) -> AsyncIterator[Sold]:
        """So many tills sell during the block, each with `pause` seconds between two sales; at its end what is under way is decided."""
        sold, stop = Sold(), asyncio.Event()
        begun = asyncio.get_running_loop().time()
        running = [asyncio.create_task(self._sell(sold, stop, Random(f"{seed}/{number}"), pause)) for number in range(tills)]
        try:
            yield sold
        finally:
            stop.set()
            await asyncio.gather(*running)
            sold.elapsed = asyncio.get_running_loop().time() - begun

    async def ask(self, method: str, path: str, body: Json | None = None) -> Answer:
        """One answer, on a connection of its own. Raises OSError or EOFError."""
        connection = await self._connect()
        try:
            return await connection.exchange(self._request(method, path, msgspec.json.encode(body) if body is not None else b""))
        finally:
            connection.close()

    async def _sell(self, sold: Sold, stop: asyncio.Event, random: Random, pause: float) -> None:
        connection: Connection | None = None
        now = asyncio.get_running_loop().time
        while not stop.is_set():
            sale = self._sale(random)
            request = self._request("POST", "/v1/sales", msgspec.json.encode(sale))
            begun = now()
            while True:
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        if connection is None:
                            connection = await self._connect()
                        answer = await connection.exchange(request)
                except (OSError, EOFError) as error:
                    failure = type(error).__name__
                else:
                    if answer.headers.get("connection", "").lower() == "close":
                        connection.close()
                        connection = None
                    if answer.status == 201:
                        break
                    failure = f"{answer.status} {msgspec.json.decode(answer.body).get('code', '')}"
                sold.failed[failure] += 1
                if connection is not None:
                    connection.close()
                    connection = None
                await wait_at_most(asyncio.Event(), PAUSE_SECONDS)
            sold.net_minor[str(sale["operation_id"])] = int(msgspec.json.decode(answer.body)["net_minor"])
            sold.note(now(), now() - begun)
            if pause:
                await wait_at_most(stop, random.uniform(0, 2 * pause))
        if connection is not None:
            connection.close()

    async def _connect(self) -> Connection:
        return Connection(*await asyncio.open_connection(*self._address))

    def _request(self, method: str, path: str, content: bytes) -> bytes:
        return f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    def _sale(self, random: Random) -> Json:
        amount = random.randrange(100, 50_000)
        return {
            "operation_id": f"cluster-{uuid7()}",
            "store_id": self._store_id,
            "till_id": self._till_id,
            "sold_at": SystemClock().now().isoformat(),
            "currency": "CNY",
            "member_id": random.choice(self._members),
            "lines": [
                {"line_no": 1, "sku": "A100", "quantity": "1", "unit_price": f"{amount // 100}.{amount % 100:02}", "amount_minor": amount}
            ],
            "tenders": [{"type": "cash", "amount_minor": amount}],
        }
