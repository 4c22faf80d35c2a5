"""A chain with two programmes and a history in which everything happens that an event can tell of."""

from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import HeldClock, SystemClock
from kit.crypto import PersonalDataKeys, generate
from kit.db import raw, transaction
from kit.ids import uuid7
from member.points.operations import settle_wallet
from member.programmes.files import read_definition
from member.programmes.operations import Books, apply_programme
from member.sales.rules import Discount, NewReturn, Store
from member.wallet.commands import Act
from services.member.tests.members.conftest import Desk
from services.member.tests.wallet.conftest import DEMO, Chain

QUANTITIES = ("1", "2", "3", "1.250", "10")


@dataclass
class Past:
    """A chain whose clock begins more than a year ago: what is done in it is recorded later than it is dated, as ids have it."""

    desk: Desk
    stores: list[Chain]
    draw: Random

    async def happen(self, acts: int) -> None:
        """Signs up members, sells, takes back, adjusts, and lets time pass, by chance; every act is sent as a group of its own."""
        members = [(await self.desk.member(birthday="1987-03-02", city="杭州"))["id"], (await self.desk.member())["id"]]
        await self.desk.change(members[0], city="上海")
        await self.desk.change(members[0], phone="13800138000")
        # A wallet that owes, one that is forgiven: earn, spend what was earned, take the sale back.
        for chain in self.stores:
            member_id = (await self.desk.member())["id"]
            sale = await self._do(chain, chain.sale(member_id, ["100.00"]))
            self.pass_time(timedelta(days=4))
            balance = (await self._do(chain, chain.adjustment(member_id, 1)))["balance"]
            await self._do(chain, chain.sale(member_id, [f"{balance // 100}.{balance % 100:02}"], points=balance, tenders=[]))
            await self._do(chain, chain.reversal(sale["id"]))
            await self._do(chain, chain.adjustment(member_id, 500))
        for _ in range(acts):
            self.pass_time(timedelta(hours=self.draw.randint(1, 90), microseconds=self.draw.randint(1, 10**6)))
            await self._act(self.draw.choice(self.stores), self.draw.choice(members))
        for chain in self.stores:
            for member_id in members:
                self.pass_time(timedelta(days=40))
                await settle_wallet(chain.engine, chain.programmes, member_id, chain.store.programme_id, chain.clock.now())

    def pass_time(self, by: timedelta) -> None:
        """Moves the one clock of all."""
        self.desk.clock.advance(by)

    async def _do(self, chain: Chain, act: Act) -> dict[str, Any]:
        self.pass_time(timedelta(seconds=1))
        return await chain.do(act)

    async def _act(self, chain: Chain, member_id: str) -> None:
        draw = self.draw
        match draw.choice(["sale", "sale", "spend", "guest", "reversal", "reversal", "adjust", "return", "group"]):
            case "sale":
                await chain.do(self._sale(chain, member_id))
            case "guest":
                await chain.do(self._sale(chain, ""))
            case "spend":
                (figures,) = await chain.rows(
                    "SELECT coalesce(max(balance), 0) FROM wallets WHERE member_id = $1 AND programme_id = $2",
                    member_id,
                    chain.store.programme_id,
                )
                # Fewer than there are, for some may lapse before.
                await chain.run(chain.command(chain.sale(member_id, ["50.00", "9.99"], points=min(figures[0] // 2, 5000))))
            case "adjust":
                await chain.run(chain.command(chain.adjustment(member_id, draw.choice([-100, 50, 300]))))
            case "return":
                await chain.do(self._return(chain, draw.choice([member_id, ""])))
            case "group":
                # Of one transaction: one event of sales each, one of points for all.
                sale = self._sale(chain, member_id)
                await chain.run(
                    chain.command(sale), chain.command(self._sale(chain, member_id)), chain.command(chain.adjustment(member_id, 7))
                )
            case _:
                rows = await chain.rows(
                    "SELECT l.sale_id::text, l.line_no, l.quantity::text FROM sale_lines l ORDER BY l.sale_id, l.line_no"
                )
                if rows:
                    sale_id, line_no, quantity = draw.choice(rows)
                    part = [(line_no, "1" if "." not in quantity else quantity)]
                    await chain.run(chain.command(chain.reversal(sale_id, draw.choice([part, []]))))

    def _sale(self, chain: Chain, member_id: str) -> Any:
        draw = self.draw
        numbers = range(1, draw.randint(2, 4))
        lines = tuple(
            msgspec.structs.replace(
                chain.line(
                    number, f"{draw.randint(1, 300)}.{draw.randint(0, 99):02}", draw.choice(QUANTITIES), discounts=(Discount(1, "age 30"),)
                ),
                category=draw.choice(["", "audio"]),
            )
            for number in numbers
        )
        return chain.sale(member_id, lines=lines, channel=draw.choice(["", "web"]), staff_code=draw.choice(["", "E042"]))

    def _return(self, chain: Chain, member_id: str) -> NewReturn:
        now = chain.clock.now()
        lines = ((1, "SKU1", "Earphones", "audio", "2", "5.00", 1000), (2, "SKU2", "", "", "0.500", "3.00", 150))
        return NewReturn(chain.operation_id(), chain.store, uuid7(), "", now, 480, "CNY", member_id, "too loud", lines)


async def open_chain(engine: AsyncEngine) -> Past:
    """A chain that opened 500 days ago, on a migrated database."""
    clock = HeldClock(SystemClock().now() - timedelta(days=500))
    waiting = {
        "programme_id": "waiting",
        "name": "Points that wait, and soon lapse",
        "effective_from": "2010-01-01",
        "zone": "America/New_York",
        "currency": "CNY",
        "earn": {"points": 1, "per_minor": 10},
        "spend": {"points": 1, "minor": 1},
        "expiry": {"days": 12},
        "pending_days": 3,
        "restore_grace_days": 2,
        "shortfall": "forgive",
    }
    async with transaction(engine) as connection:
        for definition in (read_definition(DEMO), waiting):
            await apply_programme(raw(connection), definition, applied_by="test", now=clock.now())
    key_file = generate()
    desk = Desk(engine, clock, key_file, PersonalDataKeys.parse(key_file))
    store = Store(uuid7(), "S001", ZoneInfo("Asia/Shanghai"), "CNY", "demo", 0, True)
    first = Chain(engine, clock, Books(), store, numbers=100_000)
    other = Store(uuid7(), "S002", ZoneInfo("America/New_York"), "CNY", "waiting", 240, True)
    return Past(desk, [first, replace(first, store=other, numbers=200_000)], Random(4))


@pytest.fixture
async def past(engine: AsyncEngine) -> Past:
    """A chain on a database of its own."""
    return await open_chain(engine)
