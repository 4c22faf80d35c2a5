"""Sixty-four clients write at once while the gateway, the member service and PostgreSQL are killed at random moments.

Afterwards nothing that was answered is lost, nothing is done twice or by half, and every client can find out what became of each of its
writes. `STRESS_SECONDS` and `STRESS_SEED` choose how long and which draw; the same seed draws the same acts, in another order of time.
"""

import asyncio
import os
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from kit.ids import uuid7
from kit.money import line_amount_minor
from tests.integration.api import Api, Json, exact
from tests.integration.shop import Till, cash
from tests.integration.system import System, running_system, wait_until

SECONDS = int(os.environ.get("STRESS_SECONDS", "60"))
SEED = int(os.environ.get("STRESS_SEED", "20261121"))
CLIENTS = 64
HOT_MEMBERS = 4
MEMBERS = 60
OPENING_POINTS = 3000
# The share of all writes that are sent once more in the end; looked up is every one.
REPLAYED = 0.2
PARTS = ("gateway", "member", "postgres")


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
    # So few that clients meet.
    sold_of_late: deque[Write] = field(default_factory=lambda: deque(maxlen=30))


class Client:
    """One client: draws an act, sends it until it is decided, and goes on."""

    def __init__(self, number: int, shop: Shop, line: Line) -> None:
        self._random = Random(f"{SEED}/{number}")
        self._shop = shop
        self._line = line
        self._till = shop.till
        self._writes: list[Write] = []

    async def run(self, is_over: Callable[[], bool]) -> None:
        acts = (self._sell, self._spend, self._reverse, self._race, self._adjust, self._sign_up, self._replay, self._reuse)
        while not is_over():
            (act,) = self._random.choices(acts, (30, 20, 12, 6, 4, 2, 10, 2))
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
                "discounts": discounts,
            }  # fmt: skip

    async def _sell(self) -> None:
        await self._record(self._till.sale(self._member(), self._lines()))

    async def _spend(self) -> None:
        """Pays with points, more of them sometimes than the member has; now and then all of it."""
        lines = self._lines()
        net = sum(line["amount_minor"] - sum(d["amount_minor"] for d in line["discounts"]) for line in lines)
        points = min(net, self._random.choice((50, 500, 2000, net)))
        await self._record(self._till.sale(self._member() or self._shop.members[0], lines, points, tenders=cash(net - points)))

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


async def kill_at_random(system: System, line: Line, is_over: Callable[[], bool]) -> Counter[str]:
    """Kills one part, or several at once, then lets everything come back and be written to for a moment."""
    random = Random(f"{SEED}/kills")
    deeds: dict[str, Callable[[], None]] = {
        **{name: partial(system.kill, name) for name in PARTS},
        "connection": lambda: system.kill_connection(random),
    }
    killed: Counter[str] = Counter()
    # Each of them once, whatever is drawn and however slow the machine.
    first = random.sample(PARTS, len(PARTS))
    while first or not is_over():
        await line.pause(random.uniform(0.3, 3))
        # PostgreSQL takes longest to come back, and meanwhile nothing is written that the others could be killed at.
        for name in [first.pop()] if first else dict.fromkeys(random.choices(list(deeds), (4, 4, 2, 1), k=random.choice((1, 1, 2)))):
            deeds[name]()
            killed[name] += 1
        await asyncio.to_thread(wait_until, system.is_whole, "everything is back")
    return killed


async def stress(system: System, shop: Shop) -> tuple[Counter[str], Line]:
    """Lets the clients write while parts are killed, and then look up everything that they wrote."""
    line = Line(system.url, system.key("admin"))
    clients = [Client(number, shop, line) for number in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS

    def is_over() -> bool:
        return loop.time() > end

    watching = asyncio.create_task(line.watch())
    try:
        killing = asyncio.create_task(kill_at_random(system, line, is_over))
        await _all(client.run(is_over) for client in clients)
        killed = await killing
        await _all(client.look_everything_up() for client in clients)
    finally:
        line.over.set()
        await watching
    return killed, line


async def _all(acts: Iterator[Awaitable[None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for act in acts:
            group.create_task(_awaited(act))


async def _awaited(act: Awaitable[None]) -> None:
    await act


@pytest.mark.timeout(SECONDS + 300)
async def test_whatever_is_killed_nothing_is_lost_doubled_or_half_done(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\nSTRESS_SECONDS={SECONDS} STRESS_SEED={SEED}\n")
    with running_system() as system:
        admin = system.api(system.key("admin"))
        till = Till(admin, system.store_id, system.till_id)
        shop = Shop(till, open_members(admin))
        killed, line = await stress(system, shop)
        outcomes = Counter(f"{w.status} {'' if w.is_done else w.document['code']}".strip() for w in shop.writes)
        with capsys.disabled():
            told = ", ".join(f"{name}: {count}" for name, count in (*killed.items(), *outcomes.most_common(), *line.troubles.items()))
            sys.stdout.write(f"\n{len(shop.writes)} writes; {told}\n")
        check_what_is_stored(shop, list(admin.items("/v1/sales", limit=500)))
        check_balances(shop, admin)
        assert admin.differences() == []
        assert '"level": "error"' not in system.logs()["gateway.log"] + system.logs()["member.log"], "nothing surprised a service"
        phones = [w.document["phone"] for w in shop.writes if w.path == "/v1/members" and w.is_done]
        assert len(phones) == len(set(phones)), "one live member for a verified phone"
        assert "operation_id_reused" not in {w.document.get("code") for w in shop.writes}
        raced = {w.document.get("code") for w in shop.writes if w.is_reversal}
        assert {"quantity_already_reversed", "nothing_left_to_reverse"} <= raced, "clients did meet"


def open_members(admin: Api) -> list[str]:
    """Members who begin with some points."""
    signed_up = admin.post("/v1/members:import", {"members": [{"operation_id": uuid7()} for _ in range(MEMBERS)]}, 200)
    members = [outcome["member_id"] for outcome in signed_up["outcomes"]]
    for member_id in members:
        body = {"operation_id": uuid7(), "points": OPENING_POINTS, "reason": "opening"}
        admin.post(f"/v1/members/{member_id}/points:adjust", body)
    return members


def check_what_is_stored(shop: Shop, stored: list[Json]) -> None:
    """What the lists show is what was answered: each write once, none more, every figure the same, and right."""
    sales = {w.operation_id: w.document for w in shop.writes if w.is_sale and w.is_done}
    reversals = {w.operation_id: w.document for w in shop.writes if w.is_reversal and w.is_done}
    assert Counter(sale["operation_id"] for sale in stored) == Counter(list(sales))
    assert Counter(back["operation_id"] for sale in stored for back in sale["reversals"]) == Counter(list(reversals))
    for sale in stored:
        answer = sales[sale["operation_id"]]
        assert figures(sale) == figures(answer)
        for back in sale["reversals"]:
            assert without(back, "points") == without(reversals[back["operation_id"]], "points")
        check_sums(answer, [reversals[back["operation_id"]] for back in sale["reversals"]])


def figures(sale: Json) -> Json:
    """A sale without what its reversals change and without the member's figures of the moment."""
    return without(sale, "points", "reversals", "lines") | {"lines": [without(line, "reversed_quantity") for line in sale["lines"]]}


def without(document: Json, *names: str) -> Json:
    return {name: value for name, value in document.items() if name not in names}


def check_sums(sale: Json, reversals: list[Json]) -> None:
    """The demo programme's arithmetic, done again: one point for 100, on what was paid and on what is left after refunds."""

    def total(documents: list[Any], name: str) -> int:
        return sum(each[name] for each in documents)

    payable, refunded = sale["payable_minor"], total(reversals, "refund_minor")
    assert payable == total(sale["lines"], "payable_minor") == total(sale["tenders"], "amount_minor")
    assert 0 <= refunded <= payable
    for back in reversals:
        assert back["refund_minor"] == total(back["lines"], "refund_minor") == total(back["tenders"], "amount_minor")
    if sale["member_id"] is None:
        assert sale["points"] is None
        return
    earned, spent = sale["points"]["earned"], sale["points"]["spent"]
    assert earned == payable // 100 == total(sale["lines"], "points_earned")
    assert spent == sale["points_spent_minor"] == total(sale["lines"], "points_spent")
    moved = [back["points"] for back in reversals]
    assert total(moved, "taken_back") == earned - (payable - refunded) // 100
    assert 0 <= total(moved, "returned") <= spent
    assert refunded + total(moved, "returned") <= sale["net_minor"]


def check_balances(shop: Shop, admin: Api) -> None:
    """Every member has what the answers add up to; nobody has points and a debt."""
    moved: Counter[str] = Counter(dict.fromkeys(shop.members, OPENING_POINTS))
    for write in shop.writes:
        if write.is_done and write.member_id:
            document = write.document
            points = document["points"]
            if write.is_sale:
                moved[write.member_id] += points["earned"] - points["spent"]
            elif write.is_reversal:
                moved[write.member_id] += points["returned"] - points["taken_back"]
            else:
                moved[write.member_id] += points
    for member_id in shop.members:
        points = admin.get(f"/v1/members/{member_id}/points")
        assert points["balance"] - points["debt"] == moved[member_id]
        assert min(points["balance"], points["debt"]) == 0 <= max(points["balance"], points["debt"])
        assert points["pending"] == 0
