"""The public JSON of sales, reversals, returns and points (api.md). Made here once: stored, replayed and read back as it is."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from member.sales.rules import Discount, Reversal, Sale, Tender, UnlinkedReturn, reversed_quantities

if TYPE_CHECKING:
    from member.points.rules import Shortfall, Wallet

encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=256)
def _offset(minutes: int) -> timezone:
    return timezone(timedelta(minutes=minutes))


def utc_text(at: datetime) -> str:
    """An instant as RFC 3339 in UTC, such as 2027-12-31T16:00:00Z."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def offset_text(at: datetime, offset_minutes: int) -> str:
    """An instant as RFC 3339 with the offset its sender used."""
    return at.astimezone(_offset(offset_minutes)).isoformat() if offset_minutes else utc_text(at)


def sale_document(sale: Sale, points: dict[str, Any] | None, reversals: Sequence[Reversal] = ()) -> dict[str, Any]:
    """A sale as the API gives it; `points` is null for a guest's."""
    back: Mapping[int, Decimal] = reversed_quantities(reversals) if reversals else {}
    return {
        "id": sale.sale_id,
        "operation_id": sale.operation_id,
        "store_id": sale.store_id,
        "till_id": sale.till_id,
        "receipt_no": sale.receipt_no or None,
        "sold_at": offset_text(sale.sold_at, sale.sold_at_offset_minutes),
        "business_day": sale.business_day.isoformat(),
        "currency": sale.currency,
        "member_id": sale.member_id or None,
        "channel": sale.channel or None,
        "staff_code": sale.staff_code or None,
        "gross_minor": sale.gross_minor,
        "discount_minor": sale.discount_minor,
        "net_minor": sale.net_minor,
        "points_spent_minor": sale.points_spent_minor,
        "payable_minor": sale.payable_minor,
        "discounts": [_discount(d) for d in sale.discounts],
        "lines": [
            {
                "line_no": line.line_no,
                "sku": line.sku,
                "description": line.description or None,
                "category": line.category or None,
                "quantity": line.quantity,
                "unit_price": line.unit_price,
                "amount_minor": line.amount_minor,
                "discount_minor": line.discount_minor,
                "net_minor": line.net_minor,
                "discounts": [_discount(d) for d in line.discounts],
                "points_spent": line.points_spent,
                "points_spent_minor": line.points_spent_minor,
                "payable_minor": line.payable_minor,
                "points_earned": line.points_earned,
                "rule": line.rule or None,
                "serials": line.serials,
                "reversed_quantity": f"{back[line.line_no]:f}" if line.line_no in back else "0",
            }
            for line in sale.lines
        ],
        "tenders": [_tender(t) for t in sale.tenders],
        "points": points,
        "reversals": [reversal_document(r, sale) for r in reversals],
    }


def reversal_document(reversal: Reversal, sale: Sale, figures: dict[str, Any] | None = None) -> dict[str, Any]:
    """A reversal as the API gives it; `figures` are the wallet's after it, in the answer to the reversal itself."""
    return {
        "id": reversal.reversal_id or None,
        "sale_id": reversal.sale_id,
        "operation_id": reversal.operation_id or None,
        "store_id": reversal.store_id,
        "till_id": reversal.till_id,
        "reversed_at": offset_text(reversal.reversed_at, reversal.reversed_at_offset_minutes),
        "business_day": reversal.business_day.isoformat(),
        "reason": reversal.reason or None,
        "currency": sale.currency,
        "lines": [
            {
                "line_no": line.line_no,
                "quantity": line.quantity,
                "refund_minor": line.refund_minor,
                "points_returned": line.points_returned,
            }
            for line in reversal.lines
        ],
        "refund_minor": reversal.refund_minor,
        "tenders": [_tender(Tender(sale.tenders[i].type, amount, sale.tenders[i].reference)) for i, amount in reversal.refunds],
        "points": {"taken_back": reversal.points_taken_back, "returned": reversal.points_returned, **(figures or {})}
        if sale.member_id
        else None,
    }


def points_figures(wallet: "Wallet", shortfall: "Shortfall") -> dict[str, Any]:
    """A wallet's figures. Where the programme lets the balance go negative, what is owed is shown as that."""
    expiry = wallet.next_expiry
    shown_as_negative = shortfall == "negative"
    return {
        "balance": wallet.balance - wallet.debt if shown_as_negative else wallet.balance,
        "pending": wallet.pending,
        "debt": 0 if shown_as_negative else wallet.debt,
        "next_expiry": {"points": expiry[1], "at": utc_text(expiry[0])} if expiry else None,
    }


def _discount(discount: Discount) -> dict[str, Any]:
    return {"amount_minor": discount.amount_minor, "reason": discount.reason}


def _tender(tender: Tender) -> dict[str, Any]:
    if tender.reference:
        return {"type": tender.type, "amount_minor": tender.amount_minor, "reference": tender.reference}
    return {"type": tender.type, "amount_minor": tender.amount_minor}


def return_document(given: UnlinkedReturn) -> dict[str, Any]:
    """A return without a sale as the API gives it."""
    return {
        "id": given.return_id,
        "operation_id": given.operation_id,
        "store_id": given.store_id,
        "till_id": given.till_id,
        "receipt_no": given.receipt_no or None,
        "returned_at": offset_text(given.returned_at, given.returned_at_offset_minutes),
        "business_day": given.business_day.isoformat(),
        "currency": given.currency,
        "member_id": given.member_id or None,
        "reason": given.reason or None,
        "lines": [
            {
                "line_no": line_no,
                "sku": sku,
                "description": description or None,
                "category": category or None,
                "quantity": quantity,
                "unit_price": unit_price,
                "refund_minor": refund_minor,
            }
            for line_no, sku, description, category, quantity, unit_price, refund_minor in given.lines
        ],
        "refund_minor": given.refund_minor,
    }
