"""The facts that a group leaves in the outbox: ids, amounts and codes, never personal data."""

from datetime import datetime

from google.protobuf.message import Message

from kit.ids import uuid7
from kit.outbox import Event
from member.points.rules import Wallet, unix_us
from member.programmes.rules import ProgrammeBook
from member.sales.rules import Reversal, Sale, UnlinkedReturn
from regulars.member.v1 import points_events_pb2 as points_pb
from regulars.member.v1 import sale_events_pb2 as sales_pb

SALES_TOPIC = "member.sale.v1"
POINTS_TOPIC = "member.points.v1"


def sale_recorded(sale: Sale, traceparent: str) -> Event:
    """A sale was recorded. Keyed by the member; a guest's by itself."""
    message = sales_pb.SaleRecorded(
        sale_id=sale.sale_id,
        member_id=sale.member_id,
        programme_id=sale.programme_id,
        store_id=sale.store_id,
        till_id=sale.till_id,
        sold_at_unix_us=unix_us(sale.sold_at),
        business_day=sale.business_day.isoformat(),
        currency=sale.currency,
        channel=sale.channel,
        staff_code=sale.staff_code,
        gross_minor=sale.gross_minor,
        discount_minor=sale.discount_minor,
        net_minor=sale.net_minor,
        points_spent_minor=sale.points_spent_minor,
        payable_minor=sale.payable_minor,
        points_earned=sale.points_earned,
        points_spent=sale.points_spent,
        lines=[
            sales_pb.SaleRecordedLine(
                line_no=line.line_no,
                sku=line.sku,
                category=line.category,
                quantity=line.quantity,
                gross_minor=line.amount_minor,
                net_minor=line.net_minor,
                payable_minor=line.payable_minor,
                points_earned=line.points_earned,
            )
            for line in sale.lines
        ],
        wallet_sequence=sale.wallet_sequence,
    )
    return _event(SALES_TOPIC, sale.member_id or sale.sale_id, message, sale.recorded_at, traceparent)


def sale_reversed(reversal: Reversal, sale: Sale, traceparent: str) -> Event:
    """All or part of a sale was taken back."""
    sold = {line.line_no: line for line in sale.lines}
    message = sales_pb.SaleReversed(
        reversal_id=reversal.reversal_id,
        sale_id=sale.sale_id,
        member_id=sale.member_id,
        programme_id=sale.programme_id,
        store_id=reversal.store_id,
        till_id=reversal.till_id,
        reversed_at_unix_us=unix_us(reversal.reversed_at),
        business_day=reversal.business_day.isoformat(),
        currency=sale.currency,
        refund_minor=reversal.refund_minor,
        net_minor=reversal.net_minor,
        points_taken_back=reversal.points_taken_back,
        points_returned=reversal.points_returned,
        lines=[
            sales_pb.SaleReversedLine(
                line_no=line.line_no,
                sku=sold[line.line_no].sku,
                category=sold[line.line_no].category,
                quantity=line.quantity,
                net_minor=line.net_minor,
                refund_minor=line.refund_minor,
                points_returned=line.points_returned,
            )
            for line in reversal.lines
        ],
        wallet_sequence=reversal.wallet_sequence,
        channel=sale.channel,
        staff_code=sale.staff_code,
    )
    return _event(SALES_TOPIC, sale.member_id or sale.sale_id, message, reversal.recorded_at, traceparent)


def return_recorded(given: UnlinkedReturn, traceparent: str) -> Event:
    """Goods came back that belong to no recorded sale."""
    message = sales_pb.ReturnRecorded(
        return_id=given.return_id,
        member_id=given.member_id,
        store_id=given.store_id,
        returned_at_unix_us=unix_us(given.returned_at),
        business_day=given.business_day.isoformat(),
        currency=given.currency,
        refund_minor=given.refund_minor,
        lines=[
            sales_pb.SaleReversedLine(
                line_no=line_no, sku=sku, category=category, quantity=quantity, net_minor=refund_minor, refund_minor=refund_minor
            )
            for line_no, sku, _, category, quantity, _, refund_minor in given.lines
        ],
    )
    return _event(SALES_TOPIC, given.member_id or given.return_id, message, given.recorded_at, traceparent)


def points_moved(wallet: Wallet, book: ProgrammeBook, now: datetime, traceparent: str) -> Event:
    """Points moved on one wallet: all entries of one transaction."""
    message = points_pb.PointsMoved(
        member_id=wallet.member_id,
        programme_id=wallet.programme_id,
        moves=[
            points_pb.PointsMove(
                sequence=entry.sequence,
                kind=entry.kind,
                points=entry.points,
                pending=entry.pending,
                debt=entry.debt,
                expired=entry.expired,
                lot_id=entry.lot_id or "",
                sale_id=entry.sale_id or "",
                cause_id=entry.cause_id or "",
                at_unix_us=unix_us(entry.at),
                day=book.day_of(wallet.programme_id, entry.at).isoformat(),
            )
            for entry in wallet.entries
        ],
        balance=wallet.balance,
        pending=wallet.pending,
        debt=wallet.debt,
        wallet_sequence=wallet.sequence,
    )
    return _event(POINTS_TOPIC, wallet.member_id, message, now, traceparent)


def _event(topic: str, key: str, message: Message, at: datetime, traceparent: str) -> Event:
    return Event(uuid7(), topic, key, message.DESCRIPTOR.full_name, message.SerializeToString(), traceparent, at)
