"""Sales as `member` publishes them: the same message, filled as a chain's tills would, drawn repeatably."""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from kit.ids import uuid7
from kit.outbox import Event
from regulars.member.v1 import sale_events_pb2 as sales_pb

TOPIC = "member.sale.v1"
STORES = 40
SKUS = 2_000
CATEGORIES = 25
LINES = 3


class Sales:
    """Sales of three lines by `members` members in 40 stores over the `days` days before `last_day`, in the order of their days."""

    def __init__(self, *, members: int = 10_000, days: int = 365, last_day: date = date(2026, 11, 20), seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.members = [self._uuid() for _ in range(members)]
        self.stores = [self._uuid() for _ in range(STORES)]
        self._tills = [self._uuid() for _ in range(STORES)]
        self._days = [last_day - timedelta(days=days - 1 - number) for number in range(days)]
        self._prices = [self._random.randrange(990, 99_900, 10) for _ in range(SKUS)]

    def events(self, number: int, *, topic: str = TOPIC) -> Iterator[Event]:
        """`number` sales, each its own; a tenth by guests."""
        draw = self._random.random
        kind = sales_pb.SaleRecorded.DESCRIPTOR.full_name
        for index in range(number):
            day = self._days[index * len(self._days) // number]
            sold_at = datetime(day.year, day.month, day.day, 1, tzinfo=UTC) + timedelta(seconds=int(draw() * 43_200))
            sale_id = uuid7()
            member_id = "" if draw() < 0.1 else self.members[int(draw() * len(self.members))]
            store = int(draw() * STORES)
            message = sales_pb.SaleRecorded(
                sale_id=sale_id,
                member_id=member_id,
                programme_id="demo",
                store_id=self.stores[store],
                till_id=self._tills[store],
                sold_at_unix_us=int(sold_at.timestamp()) * 1_000_000,
                business_day=day.isoformat(),
                currency="CNY",
                channel="store" if draw() < 0.8 else "web",
                staff_code=f"E{int(draw() * 300):03d}",
                wallet_sequence=index + 1 if member_id else 0,
            )
            gross = discount = 0
            for line_no in range(1, LINES + 1):
                sku = int(draw() * SKUS)
                quantity = 1 + int(draw() * 3)
                amount = self._prices[sku] * quantity
                off = amount // 10 if draw() < 0.3 else 0
                message.lines.add(
                    line_no=line_no,
                    sku=f"SKU-{sku:05d}",
                    category=f"category-{sku % CATEGORIES:02d}",
                    quantity=str(quantity),
                    gross_minor=amount,
                    net_minor=amount - off,
                    payable_minor=amount - off,
                    points_earned=(amount - off) // 100 if member_id else 0,
                )
                gross += amount
                discount += off
            message.gross_minor = gross
            message.discount_minor = discount
            message.net_minor = message.payable_minor = gross - discount
            message.points_earned = sum(line.points_earned for line in message.lines)
            yield Event(uuid7(), topic, member_id or sale_id, kind, message.SerializeToString(), "", sold_at)

    def batches(self, number: int, size: int, *, topic: str = TOPIC) -> Iterator[Sequence[Event]]:
        """The same in lists of `size`."""
        batch: list[Event] = []
        for event in self.events(number, topic=topic):
            batch.append(event)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))
