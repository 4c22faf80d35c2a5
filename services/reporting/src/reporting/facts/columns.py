"""The columns of the facts, as the migrations made them."""

from collections.abc import Mapping

_NAME = "LowCardinality(String)"
_INSTANT = "DateTime64(6, 'UTC')"
_QUANTITY = "Decimal(18, 6)"

SALES = "sales"
SALE_LINES = "sale_lines"
RETURNS = "returns"
RETURN_LINES = "return_lines"
POINTS_MOVES = "points_moves"
MEMBERS = "members"
FIRST_PURCHASES = "first_purchases"
UNKNOWN_EVENTS = "unknown_events"

# In the order in which a batch is inserted: lines are there before the sale that counts them.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    SALE_LINES: {
        "business_day": "Date32",
        "store_id": "UUID",
        "sale_id": "UUID",
        "line_no": "UInt32",
        "member_id": "UUID",
        "programme_id": _NAME,
        "currency": _NAME,
        "channel": _NAME,
        "staff_code": _NAME,
        "sku": "String",
        "category": _NAME,
        "quantity": _QUANTITY,
        "gross_minor": "Int64",
        "net_minor": "Int64",
        "payable_minor": "Int64",
        "points_earned": "Int64",
        "version": "UInt64",
    },
    SALES: {
        "business_day": "Date32",
        "store_id": "UUID",
        "sale_id": "UUID",
        "till_id": "UUID",
        "member_id": "UUID",
        "programme_id": _NAME,
        "currency": _NAME,
        "channel": _NAME,
        "staff_code": _NAME,
        "sold_at": _INSTANT,
        "items": _QUANTITY,
        "gross_minor": "Int64",
        "discount_minor": "Int64",
        "net_minor": "Int64",
        "points_spent_minor": "Int64",
        "payable_minor": "Int64",
        "points_earned": "Int64",
        "points_spent": "Int64",
        "version": "UInt64",
    },
    RETURN_LINES: {
        "business_day": "Date32",
        "store_id": "UUID",
        "return_id": "UUID",
        "line_no": "UInt32",
        "kind": _NAME,
        "sale_id": "UUID",
        "member_id": "UUID",
        "programme_id": _NAME,
        "currency": _NAME,
        "channel": _NAME,
        "staff_code": _NAME,
        "sku": "String",
        "category": _NAME,
        "quantity": _QUANTITY,
        "net_minor": "Int64",
        "refund_minor": "Int64",
        "points_returned": "Int64",
        "version": "UInt64",
    },
    RETURNS: {
        "business_day": "Date32",
        "store_id": "UUID",
        "return_id": "UUID",
        "kind": _NAME,
        "sale_id": "UUID",
        "till_id": "UUID",
        "member_id": "UUID",
        "programme_id": _NAME,
        "currency": _NAME,
        "channel": _NAME,
        "staff_code": _NAME,
        "returned_at": _INSTANT,
        "items": _QUANTITY,
        "net_minor": "Int64",
        "refund_minor": "Int64",
        "points_taken_back": "Int64",
        "points_returned": "Int64",
        "version": "UInt64",
    },
    POINTS_MOVES: {
        "day": "Date32",
        "programme_id": _NAME,
        "member_id": "UUID",
        "sequence": "UInt64",
        "kind": _NAME,
        "points": "Int64",
        "pending": "Int64",
        "debt": "Int64",
        "expired": "Int64",
        "lot_id": "UUID",
        "sale_id": "UUID",
        "cause_id": "UUID",
        "at": _INSTANT,
        "version": "UInt64",
    },
    MEMBERS: {
        "member_id": "UUID",
        "programme_id": _NAME,
        "joined_on": "Date32",
        "birth_year_from": "UInt16",
        "city": _NAME,
        "tier": _NAME,
        "version": "UInt64",
    },
    FIRST_PURCHASES: {
        "member_id": "UUID",
        "first_day": "SimpleAggregateFunction(min, Date32)",
    },
    UNKNOWN_EVENTS: {
        "type": _NAME,
        "event_id": "UUID",
        "topic": _NAME,
        "key": "String",
        "payload": "String",
        "recorded_at": _INSTANT,
        "version": "UInt64",
    },
}

# What a rebuild makes anew. An event that is not understood is no fact, and not in the ledgers.
REBUILT = tuple(table for table in COLUMNS if table != UNKNOWN_EVENTS)
