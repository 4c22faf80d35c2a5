"""Events as the member service publishes them."""

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message as Protobuf

from kit.ids import uuid7
from kit.outbox import Event
from regulars.member.v1 import member_events_pb2 as members_pb
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb
from reporting.facts.consumers import TOPICS
from reporting.facts.rules import Fact, unix_us

STORE = uuid7()
OTHER_STORE = uuid7()
TILL = uuid7()
AT = datetime(2026, 11, 21, 10, 3, 12, 345678, tzinfo=UTC)
SALES_TOPIC, POINTS_TOPIC, MEMBERS_TOPIC = TOPICS

_moments = itertools.count()


def event(topic: str, key: str, message: Protobuf) -> Event:
    """The event of a message; each is recorded a moment after the one before."""
    at = AT + timedelta(milliseconds=next(_moments))
    return Event(uuid7(), topic, key, message.DESCRIPTOR.full_name, message.SerializeToString(), "", at)


def fact(given: Event) -> Fact:
    """What reporting makes of an event."""
    return Fact(given.event_id, given.topic, given.key, given.type, given.payload, unix_us(given.recorded_at))


def sale(
    *, lines: Sequence[tuple[str, str, int]] = (("A100", "1", 10_00),), member: str = "", day: str = "2026-11-21", **given: Any
) -> tuple[str, Event]:
    """The id of a sale and its event; a line is SKU, quantity, net."""
    sale_id = given.pop("sale_id", "") or uuid7()
    total = sum(net for _, _, net in lines)
    values = {
        "store_id": STORE,
        "till_id": TILL,
        "programme_id": "demo" if member else "",
        "sold_at_unix_us": unix_us(AT),
        "currency": "CNY",
        "channel": "store",
        "staff_code": "s1",
        "gross_minor": total,
        "net_minor": total,
        "payable_minor": total,
    } | given
    message = sales_pb.SaleRecorded(
        sale_id=sale_id,
        member_id=member,
        business_day=day,
        lines=[
            sales_pb.SaleRecordedLine(
                line_no=number, sku=sku, category="audio", quantity=quantity, gross_minor=net, net_minor=net, payable_minor=net
            )
            for number, (sku, quantity, net) in enumerate(lines, 1)
        ],
        **values,
    )
    return sale_id, event(SALES_TOPIC, member or sale_id, message)


def reversal(
    sale_id: str, *, lines: Sequence[tuple[int, str, int]] = ((1, "1", 10_00),), member: str = "", day: str = "2026-11-22", **given: Any
) -> Event:
    """A line is its number, quantity, net."""
    total = sum(net for _, _, net in lines)
    values = {
        "reversal_id": uuid7(),
        "store_id": STORE,
        "till_id": TILL,
        "programme_id": "demo" if member else "",
        "reversed_at_unix_us": unix_us(AT),
        "currency": "CNY",
        "channel": "store",
        "staff_code": "s1",
        "refund_minor": total,
        "net_minor": total,
    } | given
    message = sales_pb.SaleReversed(
        sale_id=sale_id,
        member_id=member,
        business_day=day,
        lines=[
            sales_pb.SaleReversedLine(line_no=number, sku="A100", category="audio", quantity=quantity, net_minor=net, refund_minor=net)
            for number, quantity, net in lines
        ],
        **values,
    )
    return event(SALES_TOPIC, member or sale_id, message)


def unlinked_return(*, refund: int = 5_00, quantity: str = "1", day: str = "2026-11-22", member: str = "") -> Event:
    """Goods that came back without a sale."""
    return_id = uuid7()
    message = sales_pb.ReturnRecorded(
        return_id=return_id,
        member_id=member,
        store_id=STORE,
        returned_at_unix_us=unix_us(AT),
        business_day=day,
        currency="CNY",
        refund_minor=refund,
        lines=[sales_pb.SaleReversedLine(line_no=1, sku="B200", quantity=quantity, net_minor=refund, refund_minor=refund)],
    )
    return event(SALES_TOPIC, member or return_id, message)


def points(member: str, *moves: tuple[int, str, int], day: str = "2026-11-21") -> Event:
    """A move is its sequence, kind, points."""
    message = points_pb.PointsMoved(
        member_id=member,
        programme_id="demo",
        moves=[
            points_pb.PointsMove(sequence=sequence, kind=kind, points=amount, at_unix_us=unix_us(AT), day=day, cause_id=uuid7())
            for sequence, kind, amount in moves
        ],
    )
    return event(POINTS_TOPIC, member, message)


def signed_up(member: str, *, joined_on: str = "2026-11-01", city: str = "Hangzhou", version: int = 1) -> Event:
    """A member who was born between 1985 and 1989."""
    message = members_pb.MemberSignedUp(
        member_id=member, programme_id="demo", joined_on=joined_on, birth_year_from=1985, city=city, version=version
    )
    return event(MEMBERS_TOPIC, member, message)


def changed(member: str, *, city: str, version: int) -> Event:
    """The member moved."""
    message = members_pb.MemberChanged(
        member_id=member,
        programme_id="demo",
        changed_fields=["city"],
        joined_on="2026-11-01",
        birth_year_from=1985,
        city=city,
        version=version,
    )
    return event(MEMBERS_TOPIC, member, message)


def a_history(sales: int = 40) -> list[Event]:
    """Sales of five new members and of guests over some months, some taken back."""
    members = [uuid7() for _ in range(5)]
    events = [signed_up(member) for member in members]
    for number in range(sales):
        member = (*members, "")[number % 6]
        day = f"2026-{10 + number % 2:02d}-{1 + number % 28:02d}"
        sale_id, sold = sale(member=member, day=day, lines=[("A100", "1", 10_00 + number), ("B200", "0.25", 3_33)])
        events.append(sold)
        if member:
            events.append(points(member, (number + 1, "earn", number), day=day))
        if number % 5 == 0:
            events.append(reversal(sale_id, member=member, lines=[(2, "0.25", 3_33)]))
    return [*events, unlinked_return()]
