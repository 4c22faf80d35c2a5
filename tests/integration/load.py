"""Clients that write at once: what they draw, how they send it until it is decided, and what each of them was told.

Whoever finds the system away waits until it answers again and asks the very same once more, as a till does.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from urllib.parse import urlsplit

import msgspec

from kit.ids import uuid7
from kit.money import line_amount_minor
from tests.integration.api import Api, Json, exact
from tests.integration.shop import Till, cash, now

HOT_MEMBERS = 4
OPENING_POINTS = 3000
# The share of all writes that are sent once more in the end; looked up is every one.
REPLAYED = 0.2
CATEGORIES = ("audio", "case", "film", None)
CHANNELS = ("store", "online", None)
STAFF = ("E001", "E002", None)


@dataclass(eq=False)
class Write:
    """One write of a client, and what it was told: once that is known it may never be told anything else."""

    method: str
    path: str
    body: Json
    member_id: str | None = None
    status: int = 0
    answer: bytes = b""

    @property
    def operation_id(self) -> str:
        return str(self.body["operation_id"])

    @property
    def is_sale(self) -> bool:
        return self.path == "/v1/sales"

    @property
    def is_reversal(self) -> bool:
        return self.path.endswith("/reversals")

    @property
    def is_done(self) -> bool:
        return self.status == 201

    @property
    def document(self) -> Json:
        found: Json = exact(self.answer)
        return found

    def hear(self, answer: "Answer") -> None:
        """Takes an answer in; any but the first must be the first one's bytes, and say that it is a replay."""
        assert answer.status in (201, 409, 422), f"{self.path} answered {answer.status}: {answer.body.decode()}"
        if self.status:
            assert (answer.status, answer.body) == (self.status, self.answer)
        self.status, self.answer = answer.status, answer.body


@dataclass(frozen=True)
class Answer:
    """What the gateway said."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """HTTP/1.1 by hand: a library's client would take more of the machine than the system under test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def exchange(self, request: bytes) -> Answer:
        """The answer to a request. Raises OSError or EOFError when the connection breaks; whether anything was done is not known then."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        return Answer(int(head[0].split()[1]), headers, await self._reader.readexactly(int(headers["content-length"])))

    def close(self) -> None:
        self._writer.close()


class Line:
    """The line to the gateway. Who finds it dead waits here until it answers again, instead of hammering at it."""

    def __init__(self, url: str, key: str) -> None:
        self._address = urlsplit(url).hostname, urlsplit(url).port
        self._head = f"Host: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        self._idle: list[Connection] = []
        self._answers = asyncio.Event()
        self.over = asyncio.Event()
        self.troubles: Counter[str] = Counter()

    async def ask(self, method: str, path: str, body: Json | None = None) -> Answer:
        """The answer that something was decided; asks again, the very same, while nothing was."""
        while True:
            try:
                answer = await self._ask_once(method, path, msgspec.json.encode(body) if body is not None else b"")
            except (OSError, EOFError) as error:
                self.troubles[type(error).__name__] += 1
            else:
                if answer.status != 503:
                    return answer
                assert int(answer.headers["retry-after"]) >= 1
                self.troubles[exact(answer.body)["code"]] += 1
            self._answers.clear()
            await self._answers.wait()

    async def _ask_once(self, method: str, path: str, content: bytes = b"") -> Answer:
        connection = self._idle.pop() if self._idle else Connection(*await asyncio.open_connection(*self._address))
        request = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        try:
            async with asyncio.timeout(30):
                answer = await connection.exchange(request)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return answer

    async def watch(self) -> None:
        """Tells those who wait when the gateway answers, until everything is over."""
        while not self.over.is_set():
            if not self._answers.is_set():
                with suppress(OSError, EOFError):
                    await self._ask_once("GET", "/healthz")
                    self._answers.set()
            await self.pause(0.05)
        for connection in self._idle:
            connection.close()

    async def pause(self, seconds: float) -> None:
        """Returns after so long, or at once when everything is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), seconds)


@dataclass
class Shop:
    """What all clients share: who buys, what was sold of late, and every write so far."""

    till: Till
    members: Sequence[str]
    writes: list[Write] = field(default_factory=list)
    decided: list[Write] = field(default_factory=list)
    # Returns that belong to no recorded sale, by operation id: they come with an import, whose answer says no more than that.
    returns: dict[str, Json] = field(default_factory=dict)
    # So few that clients meet.
    sold_of_late: deque[Write] = field(default_factory=lambda: deque(maxlen=30))


class Client:
    """One client: draws an act, sends it until it is decided, and goes on."""

    def __init__(self, number: int, shop: Shop, line: Line, seed: int) -> None:
        self._random = Random(f"{seed}/{number}")
        self._shop = shop
        self._line = line
        self._till = shop.till
        self._writes: list[Write] = []

    async def run(self, is_over: Callable[[], bool]) -> None:
        acts: dict[Callable[[], Awaitable[None]], int] = {
            self._sell: 30, self._spend: 20, self._reverse: 12, self._race: 6, self._take_in: 3, self._adjust: 4, self._sign_up: 2,
            self._replay: 10, self._reuse: 2, self._look: 10,
        }  # fmt: skip
        while not is_over():
            (act,) = self._random.choices(list(acts), list(acts.values()))
            await act()
            # As long as it takes to look everything up afterwards, about.
            await self._line.pause(self._random.uniform(0, 0.3))

    async def look_everything_up(self) -> None:
        """What became of each of this client's writes is what it was told, to the byte; and so is a replay, tried with some of them."""
        for write in self._writes:
            found = msgspec.json.decode((await self._line.ask("GET", f"/v1/operations/{write.operation_id}")).body, type=Found)
            assert (found.status, found.method, found.path) == (write.status, write.method, write.path)
            if write.path == "/v1/members" and write.is_done:
                assert (found.body, found.member_id) == (msgspec.Raw(b"null"), write.document["id"])
            else:
                assert bytes(found.body) == write.answer
            if write.path == "/v1/members" or self._random.random() < REPLAYED:
                replay = await self._line.ask(write.method, write.path, write.body)
                assert replay.headers["idempotent-replayed"] == "true"
                write.hear(replay)

    async def _decide(self, path: str, body: Json, member_id: str | None = None) -> Write:
        write = Write("POST", path, body, member_id)
        self._writes.append(write)
        self._shop.writes.append(write)
        # Now and then twice at once, as a nervous client does.
        tries = [self._line.ask("POST", path, body) for _ in range(2 if self._random.random() < 0.1 else 1)]
        for answer in await asyncio.gather(*tries):
            write.hear(answer)
        self._shop.decided.append(write)
        return write

    def _member(self) -> str | None:
        if self._random.random() < 0.5:
            return self._random.choice(self._shop.members[:HOT_MEMBERS])
        return self._random.choice((*self._shop.members, None))

    def _lines(self) -> list[Json]:
        return list(self._drawn_lines())

    def _drawn_lines(self) -> Iterator[Json]:
        for number in range(1, self._random.randint(1, 4) + 1):
            quantity = self._random.choice(("1", "1", "2", "3", "0.750"))
            price = f"{self._random.randint(1, 300)}.{self._random.randint(0, 99):02}"
            amount = line_amount_minor(quantity, price, "CNY")
            off = self._random.choice((0, 0, amount // 7))
            discounts = [{"amount_minor": off, "reason": "promotion"}] if off else []
            yield {
                "line_no": number, "sku": f"K{number}", "quantity": quantity, "unit_price": price, "amount_minor": amount,
                "category": self._random.choice(CATEGORIES), "discounts": discounts,
            }  # fmt: skip

    def _circumstances(self) -> Json:
        """Who sold it, where, and when: most of it now, some of it only told of now."""
        ago = self._random.choice((0, 0, 0, 0, 1, 2, 35))
        return {"sold_at": now(days=ago), "channel": self._random.choice(CHANNELS), "staff_code": self._random.choice(STAFF)}

    async def _sell(self) -> None:
        await self._record(self._till.sale(self._member(), self._lines(), **self._circumstances()))

    async def _spend(self) -> None:
        """Pays with points, more of them sometimes than the member has; now and then all of it."""
        lines = self._lines()
        net = sum(line["amount_minor"] - sum(d["amount_minor"] for d in line["discounts"]) for line in lines)
        points = min(net, self._random.choice((50, 500, 2000, net)))
        given = {"tenders": cash(net - points), **self._circumstances()}
        await self._record(self._till.sale(self._member() or self._shop.members[0], lines, points, **given))

    async def _record(self, sale: Json) -> None:
        write = await self._decide("/v1/sales", sale, sale["member_id"])
        if write.is_done:
            self._shop.sold_of_late.append(write)

    async def _reverse(self) -> None:
        if self._shop.sold_of_late:
            await self._take_back(self._random.choice(self._shop.sold_of_late))

    async def _race(self) -> None:
        """Two at once, of the same sale."""
        if self._shop.sold_of_late:
            sale = self._random.choice(self._shop.sold_of_late)
            await asyncio.gather(self._take_back(sale), self._take_back(sale))

    async def _take_back(self, sale: Write) -> None:
        lines = [(line["line_no"], line["quantity"]) for line in self._random.sample(sale.body["lines"], 1)]
        if lines[0][1] in ("2", "3"):
            lines = [(lines[0][0], "1")]
        body = self._till.reversal(*self._random.choice(([], lines, lines, lines)))
        await self._decide(f"/v1/sales/{sale.document['id']}/reversals", body, sale.member_id)

    async def _take_in(self) -> None:
        """Something comes back that was never sold here."""
        quantity, price = self._random.choice(("1", "2", "0.750")), f"{self._random.randint(1, 300)}.{self._random.randint(0, 99):02}"
        line = {"line_no": 1, "sku": "K1", "category": "audio", "quantity": quantity, "unit_price": price}
        body = {"operation_id": uuid7(), **self._till.place, "returned_at": now(), "currency": "CNY", "member_id": self._member()}
        body["lines"] = [line | {"refund_minor": line_amount_minor(quantity, price, "CNY")}]
        answer = await self._line.ask("POST", "/v1/sales:import", {"commands": [{"return": body}]})
        assert answer.status == 200, answer.body.decode()
        (outcome,) = exact(answer.body)["outcomes"]
        assert (outcome["operation_id"], outcome["status"]) == (body["operation_id"], 201), outcome
        self._shop.returns[body["operation_id"]] = body

    async def _adjust(self) -> None:
        member_id = self._random.choice(self._shop.members)
        body = {"operation_id": uuid7(), "points": self._random.choice((-700, -50, 100, 1500)), "reason": "stress"}
        await self._decide(f"/v1/members/{member_id}/points:adjust", body, member_id)

    async def _sign_up(self) -> None:
        phone = f"+86139{self._random.randrange(200):08}"
        await self._decide("/v1/members", {"operation_id": uuid7(), "phone": phone, "phone_verified": True})

    async def _replay(self) -> None:
        if self._shop.decided:
            write = self._random.choice(self._shop.decided)
            write.hear(await self._line.ask(write.method, write.path, write.body))

    async def _reuse(self) -> None:
        if self._shop.decided:
            write = self._random.choice(self._shop.decided)
            answer = await self._line.ask("POST", "/v1/sales", self._till.sale(operation_id=write.operation_id, receipt_no="other"))
            assert (answer.status, exact(answer.body)["code"]) == (409, "operation_id_reused")

    async def _look(self) -> None:
        """Reads are answered, or said to be for later."""
        member_id = self._random.choice(self._shop.members)
        paths = [f"/v1/members/{member_id}{part}" for part in ("", "/points", "/points/lots", "/points/entries", "/sales?limit=5")]
        paths += [f"/v1/sales/{sale.document['id']}" for sale in self._shop.sold_of_late][:1]
        answer = await self._line.ask("GET", self._random.choice((*paths, "/v1/sales?limit=5", "/v1/stores", "/v1/programmes/demo")))
        assert answer.status == 200, answer.body.decode()
        if self._shop.sold_of_late:
            sale = self._random.choice(self._shop.sold_of_late)
            answer = await self._line.ask("POST", f"/v1/sales/{sale.document['id']}/reversals:preview", self._till.reversal())
            assert answer.status in (200, 409), answer.body.decode()


class Found(msgspec.Struct):
    """What `GET /v1/operations/{id}` tells, the answer's bytes untouched."""

    method: str
    path: str
    status: int
    body: msgspec.Raw
    member_id: str | None


async def together(acts: Iterable[Awaitable[None]]) -> None:
    """Does all at once; the first that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for act in acts:
            group.create_task(_awaited(act))


async def _awaited(act: Awaitable[None]) -> None:
    await act


def open_members(admin: Api, count: int) -> list[str]:
    """Members who begin with some points."""
    signed_up = admin.post("/v1/members:import", {"members": [{"operation_id": uuid7()} for _ in range(count)]}, 200)
    members = [outcome["member_id"] for outcome in signed_up["outcomes"]]
    for member_id in members:
        body = {"operation_id": uuid7(), "points": OPENING_POINTS, "reason": "opening"}
        admin.post(f"/v1/members/{member_id}/points:adjust", body)
    return members
