"""A frugal HTTP load generator: raw HTTP/1.1 over kept connections, prepared bodies, next to nothing parsed.

It runs as a process of its own, `python -m benchmarks.load`, reads one JSON job from standard input and prints one JSON result.
Closed loop: every connection sends its next request when the last is answered. Open loop: requests are due at a fixed rate whether or
not earlier ones are answered, and a latency counts from when the request was due, so that a stall is not hidden.
"""

import asyncio
import contextlib
import json
import random
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

STATUS_AT = 9


@dataclass
class Job:
    """What to send. `rate` 0: closed loop. `members` empty: guests."""

    host: str
    port: int
    key: str
    store_id: str
    till_id: str
    sold_at: str
    members: list[str]
    clients: int
    seconds: float
    rate: int
    prefix: str
    seed: int


@dataclass
class Tally:
    """What came back."""

    latencies_ms: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


class Requests:
    """Makes requests: the model sale of api.md, with three lines and no points spent, for a random member."""

    def __init__(self, job: Job) -> None:
        self._random = random.Random(job.seed)  # which member buys is no secret
        self._members = [member.encode() for member in job.members]
        self._count = 0
        self._prefix = job.prefix.encode()
        rest = {
            "store_id": job.store_id,
            "till_id": job.till_id,
            "receipt_no": "000123",
            "sold_at": job.sold_at,
            "currency": "CNY",
            "channel": "store",
            "staff_code": "E042",
            "lines": [
                {
                    "line_no": 1,
                    "sku": "A100",
                    "description": "Earphones",
                    "category": "audio",
                    "quantity": "1",
                    "unit_price": "199.90",
                    "amount_minor": 19990,
                    "discounts": [{"amount_minor": 1000, "reason": "member price"}],
                },
                {"line_no": 2, "sku": "B200", "category": "case", "quantity": "2", "unit_price": "99.90", "amount_minor": 19980},
                {"line_no": 3, "sku": "C300", "category": "film", "quantity": "1", "unit_price": "69.90", "amount_minor": 6990},
            ],
            "tenders": [{"type": "cash", "amount_minor": 45960}],
        }
        self._rest = b"," + json.dumps(rest).encode()[1:]
        self._head = (
            f"POST /v1/sales HTTP/1.1\r\nHost: {job.host}\r\nAuthorization: Bearer {job.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def next(self) -> bytes:
        """One request with an operation id of its own."""
        self._count += 1
        body = b'{"operation_id":"%b-%d"' % (self._prefix, self._count)
        if self._members:
            body += b',"member_id":"%b"' % self._members[int(self._random.random() * len(self._members))]
        body += self._rest
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)


class Client(asyncio.Protocol):
    """One connection; `on_answer` is called with itself when it is free again."""

    def __init__(self, tally: Tally, on_answer: "Sender") -> None:
        self._tally = tally
        self._sender = on_answer
        self._buffer = b""
        self._since = 0.0
        self._write: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write

    def send(self, request: bytes, due: float) -> None:
        """Sends a request that was due at `due` (loop time)."""
        self._since = due
        self._write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        at = self._buffer.find(b"ontent-length: ")
        at = at if at >= 0 else self._buffer.find(b"ontent-Length: ")
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < head_end + 4 + length:
            return
        status = self._buffer[STATUS_AT : STATUS_AT + 3].decode()
        self._buffer = b""
        self._tally.latencies_ms.append((self._sender.loop.time() - self._since) * 1000)
        self._tally.statuses[status] = self._tally.statuses.get(status, 0) + 1
        self._sender.answered(self)


class Sender:
    """Decides when the next request goes out."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.requests = Requests(job)
        self._rate = job.rate
        self._free: deque[Client] = deque()
        self._due: deque[float] = deque()
        self.idle = asyncio.Event()
        self._open = True
        self._under_way = 0
        self._sent = 0
        self._start = 0.0
        self._end = 0.0
        self._seconds = job.seconds

    def start(self, clients: list[Client]) -> None:
        """Begins to send."""
        self._start = self.loop.time()
        self._end = self._start + self._seconds
        self._free.extend(clients)
        if self._rate:
            self._tick()
        else:
            for client in list(self._free):
                self._send(client, self.loop.time())
            self._free.clear()

    def stop(self) -> None:
        """Sends no more."""
        self._open = False

    def answered(self, client: Client) -> None:
        """A client is free: it sends what is due, or waits."""
        now = self.loop.time()
        self._under_way -= 1
        if not self._rate:
            if self._open:
                self._send(client, now)
        elif self._due:
            self._send(client, self._due.popleft())
        else:
            self._free.append(client)

        if not self._open and not self._under_way:
            self.idle.set()

    def _send(self, client: Client, due: float) -> None:
        self._under_way += 1
        client.send(self.requests.next(), due)

    def _tick(self) -> None:
        now = self.loop.time()
        wanted = int((min(now, self._end) - self._start) * self._rate)
        while self._sent < wanted:
            self._due.append(self._start + (self._sent + 1) / self._rate)
            self._sent += 1
        while self._due and self._free:
            self._send(self._free.popleft(), self._due.popleft())
        if self._open:
            self.loop.call_later(0.001, self._tick)


async def run(job: Job) -> dict[str, object]:
    """Sends for `job.seconds` and returns rate, latencies and statuses."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    sender = Sender(job, loop)
    clients = [(await loop.create_connection(lambda: Client(tally, sender), job.host, job.port))[1] for _ in range(job.clients)]
    began = time.monotonic()
    sender.start(clients)
    await asyncio.sleep(job.seconds)
    sender.stop()
    answered = len(tally.latencies_ms)
    took = time.monotonic() - began
    # Those under way are answered, and counted in the statuses alone.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(sender.idle.wait(), 15)
    used = resource.getrusage(resource.RUSAGE_SELF)
    ordered = sorted(tally.latencies_ms[:answered])
    return {
        "answered": answered,
        "seconds": took,
        "rate": answered / took,
        "statuses": tally.statuses,
        "p50_ms": _percentile(ordered, 50),
        "p95_ms": _percentile(ordered, 95),
        "p99_ms": _percentile(ordered, 99),
        "max_ms": ordered[-1] if ordered else 0,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Job(**json.load(sys.stdin))))))
