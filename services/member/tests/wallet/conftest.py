"""A chain of one store on a database of its own, driven through the batch writer as the service drives it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import HeldClock
from kit.db import create_engine, migrate, raw, transaction
from kit.ids import uuid7
from kit.money import line_amount_minor
from member.database import MIGRATIONS
from member.points.reconcile import Difference, reconcile_page
from member.programmes.files import read_definition
from member.programmes.operations import Books, apply_programme
from member.sales.rules import Discount, NewLine, NewReversal, NewSale, Store, Tender
from member.wallet.commands import Act, Command, NewAdjustment, Outcome, SaleToReverse
from member.wallet.operations import execute_commands, preview_reversal

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
DEMO = Path(__file__).parents[4] / "programmes" / "demo.yaml"


@dataclass
class Chain:
    """Sends commands to the writer and reads answers, as the gateway would."""

    engine: AsyncEngine
    clock: HeldClock
    programmes: Books
    store: Store
    numbers: int = 0
    sent: list[Command] = field(default_factory=list)

    def operation_id(self) -> str:
        """A new operation id."""
        self.numbers += 1
        return f"op-{self.numbers}"

    async def member(self) -> str:
        """A new member without a file's personal values."""
        member_id = uuid7()
        async with transaction(self.engine) as connection:
            await raw(connection).execute(
                """
                INSERT INTO members (member_id, status, kek_id, data_key, phone_verified, joined_on, created_at)
                VALUES ($1, 'live', 'test', 'key', false, '2026-01-01', now())
                """,
                member_id,
            )
        return member_id

    def sale(
        self,
        member_id: str,
        prices: Sequence[str | tuple[str, str]] = ("199.90", ("99.90", "2"), "69.90"),
        *,
        points: int = 0,
        tenders: Sequence[Tender] | None = None,
        **given: Any,  # any field of the struct
    ) -> NewSale:
        """A sale with a line for each price (or price and quantity), paid in cash unless told otherwise."""
        lines = given.pop("lines", None) or tuple(
            self.line(number, *((price, "1") if isinstance(price, str) else price)) for number, price in enumerate(prices, 1)
        )
        payable = sum(line.amount_minor - sum(d.amount_minor for d in line.discounts) for line in lines) - points
        payable -= sum(d.amount_minor for d in given.get("discounts", ()))
        fields: dict[str, Any] = {
            "operation_id": self.operation_id(),
            "store": self.store,
            "till_id": uuid7(),
            "receipt_no": "",
            "sold_at": self.clock.now(),
            "sold_at_offset_minutes": 480,
            "currency": "CNY",
            "member_id": member_id,
            "channel": "store",
            "staff_code": "",
            "lines": lines,
            "discounts": (),
            "points_to_spend": points,
            "tenders": tuple(tenders if tenders is not None else [Tender("cash", payable)] if payable else []),
        }
        return NewSale(**(fields | given))

    def line(self, number: int, price: str, quantity: str = "1", *, discounts: tuple[Discount, ...] = ()) -> NewLine:
        """A line whose amount is right."""
        return NewLine(number, f"SKU{number}", "", "", quantity, price, line_amount_minor(quantity, price, "CNY"), discounts, ())

    def reversal(self, sale_id: str, lines: Sequence[tuple[int, str]] = (), *, sale_operation_id: str = "") -> SaleToReverse:
        """A reversal of the named lines; none: of all that is left."""
        reversal = NewReversal(self.operation_id(), self.store, uuid7(), self.clock.now(), 0, "", tuple(lines))
        return SaleToReverse(reversal, sale_id, sale_operation_id)

    def adjustment(self, member_id: str, points: int) -> NewAdjustment:
        """Points granted or taken by hand."""
        return NewAdjustment(member_id, self.store.programme_id, points, "by hand")

    def command(self, act: Act, operation_id: str | None = None, fingerprint: bytes | None = None) -> Command:
        """The command of an act; the fingerprint is the act's own."""
        inner = act.reversal if isinstance(act, SaleToReverse) else act
        given = getattr(inner, "operation_id", None)
        named = operation_id or given or self.operation_id()
        command = Command(named, fingerprint or msgspec.json.encode(repr(act)), "POST", "/v1/test", "", None, act)
        self.sent.append(command)
        return command

    async def run(self, *commands: Command) -> list[Outcome]:
        """Sends one group."""
        return await execute_commands(self.engine, self.clock, self.programmes, commands)

    async def do(self, act: Act) -> dict[str, Any]:
        """Sends one act alone and returns its answer, which must not be a refusal."""
        (outcome,) = await self.run(self.command(act))
        document: dict[str, Any] = msgspec.json.decode(outcome.body)
        assert outcome.status == 201, document
        return document

    async def refused(self, act: Act) -> tuple[int, str]:
        """Sends one act alone and returns the status and code with which it was refused."""
        (outcome,) = await self.run(self.command(act))
        document = msgspec.json.decode(outcome.body)
        assert outcome.status >= 400, document
        return outcome.status, document["code"]

    async def preview(self, reversal: SaleToReverse) -> dict[str, Any]:
        """What a reversal would answer."""
        outcome = await preview_reversal(self.engine, self.clock, self.programmes, reversal)
        document: dict[str, Any] = msgspec.json.decode(outcome.body)
        return document

    async def differences(self, *, rebuild: bool = False) -> list[Difference]:
        """Every difference that reconciling finds."""
        found: list[Difference] = []
        token = ""
        while True:
            async with transaction(self.engine) as connection:
                page = await reconcile_page(raw(connection), self.clock.now(), size=50, page_token=token, rebuild=rebuild)
            found += page.differences
            token = page.next_page_token
            if not token:
                return found

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Rows of the database itself."""
        async with transaction(self.engine) as connection:
            return list(await raw(connection).fetch(query, *values))

    async def execute(self, statement: str, *values: object) -> None:
        """Changes the database behind the service's back."""
        async with transaction(self.engine) as connection:
            await raw(connection).execute(statement, *values)


@pytest.fixture(scope="session")
def migrated_database(make_database: Callable[..., str]) -> str:
    """A migrated database to copy."""
    url = make_database()
    asyncio.run(migrate(url, MIGRATIONS))
    return url


@pytest.fixture
async def chain(make_database: Callable[..., str], migrated_database: str) -> AsyncIterator[Chain]:
    """A chain with the demo programme."""
    engine = create_engine(make_database(migrated_database), 8)
    clock = HeldClock(NOW)
    async with transaction(engine) as connection:
        await apply_programme(raw(connection), read_definition(DEMO), applied_by="test", now=NOW)
    store = Store(uuid7(), "S001", ZoneInfo("Asia/Shanghai"), "CNY", "demo", 0, True)
    yield Chain(engine, clock, Books(), store)
    await engine.dispose()
