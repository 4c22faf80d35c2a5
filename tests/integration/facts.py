"""The facts three times: as the member service's own lists tell them, as they went over the bus, and as `reporting` keeps them.

Each is told in the same terms, so that they can be held against one another, one by one.
"""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from kit.bus.interface import Bus, Message, TopicPartition, partition_of
from regulars.member.v1 import member_events_pb2 as members_pb
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb
from tests.integration.api import Api, Json
from tests.integration.load import Shop

TOPICS = ("member.sale.v1", "member.points.v1", "member.member.v1")
NOBODY = "00000000-0000-0000-0000-000000000000"
# How many of the facts that differ a failure names.
NAMED = 5


@dataclass(frozen=True)
class Facts:
    """How often each fact is there, as plain tuples."""

    sales: Counter[tuple[object, ...]] = field(default_factory=Counter)
    sale_lines: Counter[tuple[object, ...]] = field(default_factory=Counter)
    returns: Counter[tuple[object, ...]] = field(default_factory=Counter)
    return_lines: Counter[tuple[object, ...]] = field(default_factory=Counter)
    points_moves: Counter[tuple[object, ...]] = field(default_factory=Counter)
    members: Counter[tuple[object, ...]] = field(default_factory=Counter)

    def check_same(self, found: "Facts", where: str) -> None:
        """Fails, naming some, unless exactly these facts were found `where`, each once."""
        for kind, expected in vars(self).items():
            other: Counter[tuple[object, ...]] = getattr(found, kind)
            missing, surplus = list((expected - other).items()), list((other - expected).items())
            assert set(expected.values()) <= {1}, f"{kind} are told apart"
            assert not missing, (
                f"{where} lacks {len(missing)} of {expected.total()} {kind}, among them {missing[:NAMED]}; {surplus[:NAMED]}"
            )
            assert not surplus, f"{where} has {len(surplus)} {kind} too many, among them {surplus[:NAMED]}"


@dataclass(frozen=True)
class Ledger:
    """What the member service's lists tell."""

    sales: Sequence[Json]
    returns: Sequence[Json]
    # By member, oldest first.
    entries: Mapping[str, Sequence[Json]]
    members: frozenset[str]

    @classmethod
    def read(cls, admin: Api, shop: Shop) -> "Ledger":
        """Through the API, page by page."""
        signed_up = {write.document["id"] for write in shop.writes if write.path == "/v1/members" and write.is_done}
        members = frozenset({*shop.members, *signed_up})
        return cls(
            list(admin.items("/v1/sales", limit=500)),
            list(admin.items("/v1/returns", limit=500)),
            {member_id: list(admin.items(f"/v1/members/{member_id}/points/entries", limit=500))[::-1] for member_id in members},
            members,
        )

    @property
    def reversals(self) -> Iterator[tuple[Json, Json]]:
        """Every reversal, with its sale."""
        return ((back, sale) for sale in self.sales for back in sale["reversals"])

    def facts(self) -> Facts:
        """As facts."""
        facts = Facts()
        for sale in self.sales:
            points = sale["points"] or {"earned": 0, "spent": 0}
            facts.sales[
                sale["id"], sale["member_id"] or "", sale["store_id"], sale["business_day"],
                sale["channel"] or "", sale["staff_code"] or "", sale["gross_minor"], sale["discount_minor"], sale["net_minor"],
                sale["points_spent_minor"], sale["payable_minor"], points["earned"], points["spent"],
            ] += 1  # fmt: skip
            for line in sale["lines"]:
                facts.sale_lines[
                    sale["id"], line["line_no"], line["sku"], line["category"] or "", Decimal(line["quantity"]), line["amount_minor"],
                    line["net_minor"], line["payable_minor"], line["points_earned"],
                ] += 1  # fmt: skip
        for back, sale in self.reversals:
            points = back["points"] or {"taken_back": 0, "returned": 0}
            facts.returns[
                back["id"], sale["id"], sale["member_id"] or "", back["store_id"], back["business_day"], back["refund_minor"],
                points["taken_back"], points["returned"],
            ] += 1  # fmt: skip
            for line in back["lines"]:
                facts.return_lines[
                    back["id"], line["line_no"], Decimal(line["quantity"]), line["refund_minor"], line["points_returned"]
                ] += 1
        for back in self.returns:
            facts.returns[
                back["id"], "", back["member_id"] or "", back["store_id"], back["business_day"], back["refund_minor"], 0, 0
            ] += 1  # fmt: skip
            for line in back["lines"]:
                facts.return_lines[back["id"], line["line_no"], Decimal(line["quantity"]), line["refund_minor"], 0] += 1
        for member_id, entries in self.entries.items():
            for sequence, entry in enumerate(entries, 1):
                facts.points_moves[
                    member_id, sequence, entry["kind"], entry["points"], entry["pending"], entry["debt"], entry["sale_id"] or ""
                ] += 1  # fmt: skip
        facts.members.update((member_id,) for member_id in self.members)
        return facts


@dataclass(frozen=True)
class Published:
    """What is on the bus: every message, by partition and in order, and how many of them are there again."""

    partitions: Mapping[TopicPartition, Sequence[Message]]

    @classmethod
    async def read(cls, bus: Bus) -> "Published":
        """All of the topics, to their ends of now."""
        partitions: dict[TopicPartition, list[Message]] = defaultdict(list)
        for topic in TOPICS:
            async for batch in bus.read(topic):
                for message in batch:
                    partitions[message.source].append(message)
        return cls(partitions)

    @property
    def repeated(self) -> int:
        """How many messages tell what one before them told."""
        return sum(len(messages) - len({message.event_id for message in messages}) for messages in self.partitions.values())

    def check_order(self, partitions: int) -> None:
        """Every key in its own partition, offsets upwards, and what one wallet's facts tell in the order in which they happened."""
        for source, messages in self.partitions.items():
            assert {partition_of(message.key, partitions) for message in messages} == {source.partition}
            assert all(one.offset < next_one.offset for one, next_one in pairwise(messages))
        moved: Counter[str] = Counter()
        last: Counter[str] = Counter()
        sold: set[str] = set()
        for message in self.firsts():
            match _parsed(message):
                case points_pb.PointsMoved() as fact:
                    for move in fact.moves:
                        assert move.sequence == moved[message.key] + 1, f"{message.key}: entry {move.sequence} after {moved[message.key]}"
                        moved[message.key] = move.sequence
                    assert fact.wallet_sequence == moved[message.key]
                case sales_pb.SaleRecorded() as fact:
                    assert fact.wallet_sequence >= last[message.key], f"sale {fact.sale_id} after what came later"
                    last[message.key] = fact.wallet_sequence
                    sold.add(fact.sale_id)
                case sales_pb.SaleReversed() as fact:
                    assert fact.wallet_sequence >= last[message.key], f"reversal {fact.reversal_id} after what came later"
                    last[message.key] = fact.wallet_sequence
                    assert fact.sale_id in sold, f"reversal {fact.reversal_id} before its sale"
                case _:
                    pass

    def firsts(self) -> Iterator[Message]:
        """Every event once, where it came first; one that comes again says the same."""
        seen: dict[str, tuple[str, str, bytes]] = {}
        for messages in self.partitions.values():
            for message in messages:
                told = (message.key, message.type, message.payload)
                if message.event_id not in seen:
                    seen[message.event_id] = told
                    yield message
                assert seen[message.event_id] == told

    def daily_figures(self) -> Mapping[str, Mapping[str, int | Decimal]]:
        """Sums of each business day, as the metrics of these names define them."""
        days: dict[str, dict[str, int | Decimal]] = defaultdict(lambda: defaultdict(int))
        for message in self.firsts():
            match _parsed(message):
                case sales_pb.SaleRecorded() as fact:
                    items = sum(Decimal(line.quantity) for line in fact.lines)
                    figures = {"gross_sales_minor": fact.gross_minor, "net_sales_minor": fact.net_minor, "receipts": 1, "items": items}
                case sales_pb.SaleReversed() | sales_pb.ReturnRecorded() as fact:
                    items = sum(Decimal(line.quantity) for line in fact.lines)
                    net = sum(line.net_minor for line in fact.lines)
                    figures = {"net_sales_minor": -net, "returns_minor": net, "items": -items}
                case _:
                    continue
            for name, figure in figures.items():
                days[fact.business_day][name] += figure
        return days

    def facts(self) -> Facts:
        """As facts: of a member those of the sign-up, for that is what makes one."""
        facts = Facts()
        for message in self.firsts():
            _add(facts, _parsed(message))
        return facts


_MESSAGES = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        *(sales_pb.SaleRecorded, sales_pb.SaleReversed, sales_pb.ReturnRecorded),
        *(points_pb.PointsMoved, members_pb.MemberSignedUp, members_pb.MemberChanged),
    )
}


def _parsed(message: Message) -> Any:
    return _MESSAGES[message.type].FromString(message.payload)


def _add(facts: Facts, fact: Any) -> None:
    match fact:
        case sales_pb.SaleRecorded():
            facts.sales[
                fact.sale_id, fact.member_id, fact.store_id, fact.business_day, fact.channel, fact.staff_code, fact.gross_minor,
                fact.discount_minor, fact.net_minor, fact.points_spent_minor, fact.payable_minor, fact.points_earned, fact.points_spent,
            ] += 1  # fmt: skip
            for line in fact.lines:
                facts.sale_lines[
                    fact.sale_id, line.line_no, line.sku, line.category, Decimal(line.quantity), line.gross_minor, line.net_minor,
                    line.payable_minor, line.points_earned,
                ] += 1  # fmt: skip
        case sales_pb.SaleReversed():
            facts.returns[
                fact.reversal_id, fact.sale_id, fact.member_id, fact.store_id, fact.business_day, fact.refund_minor,
                fact.points_taken_back, fact.points_returned,
            ] += 1  # fmt: skip
            _add_return_lines(facts, fact.reversal_id, fact.lines)
        case sales_pb.ReturnRecorded():
            facts.returns[fact.return_id, "", fact.member_id, fact.store_id, fact.business_day, fact.refund_minor, 0, 0] += 1
            _add_return_lines(facts, fact.return_id, fact.lines)
        case points_pb.PointsMoved():
            for move in fact.moves:
                facts.points_moves[fact.member_id, move.sequence, move.kind, move.points, move.pending, move.debt, move.sale_id] += 1
        case members_pb.MemberSignedUp():
            facts.members[(fact.member_id,)] += 1
        case _:
            pass


def _add_return_lines(facts: Facts, return_id: str, lines: Iterable[sales_pb.SaleReversedLine]) -> None:
    for line in lines:
        facts.return_lines[return_id, line.line_no, Decimal(line.quantity), line.refund_minor, line.points_returned] += 1


# What reporting keeps, in the terms above; a column of decimals is read as text.
_KEPT = {
    "sales": "sale_id, member_id, store_id, business_day, channel, staff_code, gross_minor, discount_minor, net_minor, "
    "points_spent_minor, payable_minor, points_earned, points_spent",
    "sale_lines": "sale_id, line_no, sku, category, quantity, gross_minor, net_minor, payable_minor, points_earned",
    "returns": "return_id, sale_id, member_id, store_id, business_day, refund_minor, points_taken_back, points_returned",
    "return_lines": "return_id, line_no, quantity, refund_minor, points_returned",
    "points_moves": "member_id, sequence, kind, points, pending, debt, sale_id",
    "members": "member_id",
    "unknown_events": "type",
}
# In a process of its own, for the engine takes the process that opens it.
_READ = """
import asyncio, json, sys
from reporting.clickhouse import open_clickhouse
from reporting.settings import StorageSettings

async def read(folder, tables):
    storage = StorageSettings(data_dir=folder, clickhouse_url="", clickhouse_password_file="", readers=1, log_level="INFO")
    async with open_clickhouse(storage) as clickhouse:
        rows = {table: await clickhouse.query(f"SELECT {columns} FROM {table}") for table, columns in tables.items()}
    json.dump(rows, sys.stdout, default=str)

asyncio.run(read(sys.argv[1], json.loads(sys.argv[2])))
"""


def kept_facts(folder: Path) -> Facts:
    """What reporting keeps in its data folder, which no process may have open."""
    done = subprocess.run([sys.executable, "-c", _READ, str(folder), json.dumps(_KEPT)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    rows: dict[str, list[list[Any]]] = json.loads(done.stdout)
    assert rows["unknown_events"] == []
    facts = Facts()
    for kind, found in vars(facts).items():
        names = _KEPT[kind].split(", ")
        found.update(tuple(_told(name, value) for name, value in zip(names, row, strict=True)) for row in rows[kind])
    return facts


def _told(column: str, value: Any) -> object:
    if column == "quantity":
        return Decimal(value)
    return "" if value == NOBODY else value
