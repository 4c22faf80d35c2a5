"""Sales, their lines and reversals, and returns without a sale: written once, never changed.

`member_id` is the store's id for a guest, so that every row has an owner to be distributed by.
"""

from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, Index, Integer, Numeric, SmallInteger, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from member.database import metadata

sales = Table(
    "sales",
    metadata,
    Column("sale_id", Uuid, primary_key=True),
    Column("member_id", Uuid, primary_key=True),
    Column("is_guest", Boolean, nullable=False),
    Column("programme_id", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("store_id", Uuid, nullable=False),
    Column("store_code", Text, nullable=False),
    Column("till_id", Uuid, nullable=False),
    Column("receipt_no", Text, nullable=False),
    Column("sold_at", DateTime(timezone=True), nullable=False),
    Column("sold_at_offset_minutes", SmallInteger, nullable=False),
    Column("business_day", Date, nullable=False),
    Column("currency", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("staff_code", Text, nullable=False),
    Column("gross_minor", BigInteger, nullable=False),
    Column("discount_minor", BigInteger, nullable=False),
    Column("net_minor", BigInteger, nullable=False),
    Column("points_spent", BigInteger, nullable=False),
    Column("points_spent_minor", BigInteger, nullable=False),
    Column("payable_minor", BigInteger, nullable=False),
    Column("points_earned", BigInteger, nullable=False),
    Column("earn_points", BigInteger, nullable=False),
    Column("earn_per_minor", BigInteger, nullable=False),
    Column("earn_rounding", Text, nullable=False),
    Column("earned_lot_id", Uuid),
    # Arrays of lot and points, in spend order.
    Column("spent_from", JSONB, nullable=False),
    # Arrays of amount and reason: those on the whole sale.
    Column("discounts", JSONB, nullable=False),
    # Arrays of type, amount and reference.
    Column("tenders", JSONB, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    # Null: recorded by the first release, which did not keep it.
    Column("wallet_sequence", BigInteger),
    Index("sales_of_member", "member_id", text("sold_at DESC"), text("sale_id DESC"), postgresql_where=text("NOT is_guest")),
    postgresql_partition_by="RANGE (sale_id)",
)

sale_lines = Table(
    "sale_lines",
    metadata,
    Column("sale_id", Uuid, primary_key=True),
    Column("line_no", Integer, primary_key=True),
    Column("member_id", Uuid, primary_key=True),
    Column("sku", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("category", Text, nullable=False),
    # As sent: numeric keeps the number of decimals.
    Column("quantity", Numeric, nullable=False),
    Column("unit_price", Numeric, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("discount_minor", BigInteger, nullable=False),
    Column("net_minor", BigInteger, nullable=False),
    Column("points_spent", BigInteger, nullable=False),
    Column("points_spent_minor", BigInteger, nullable=False),
    Column("points_earned", BigInteger, nullable=False),
    Column("multiplier_bp", BigInteger, nullable=False),
    Column("rule", Text, nullable=False),
    # Arrays of amount and reason; null: none.
    Column("discounts", JSONB),
    # Null: none.
    Column("serials", JSONB),
    postgresql_partition_by="RANGE (sale_id)",
)

reversals = Table(
    "reversals",
    metadata,
    Column("reversal_id", Uuid, primary_key=True),
    Column("member_id", Uuid, primary_key=True),
    Column("sale_id", Uuid, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("store_id", Uuid, nullable=False),
    Column("till_id", Uuid, nullable=False),
    Column("reversed_at", DateTime(timezone=True), nullable=False),
    Column("reversed_at_offset_minutes", SmallInteger, nullable=False),
    Column("business_day", Date, nullable=False),
    Column("reason", Text, nullable=False),
    # Arrays of line, quantity, net, refund and points returned.
    Column("lines", JSONB, nullable=False),
    Column("net_minor", BigInteger, nullable=False),
    Column("refund_minor", BigInteger, nullable=False),
    Column("points_taken_back", BigInteger, nullable=False),
    Column("points_returned", BigInteger, nullable=False),
    # Arrays of lot and points.
    Column("returned_to", JSONB, nullable=False),
    # Arrays of the index of the sale's tender and the amount.
    Column("refunds", JSONB, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    # Null: recorded by the first release, which did not keep it.
    Column("wallet_sequence", BigInteger),
    Index("reversals_of_sale", "sale_id"),
    postgresql_partition_by="RANGE (reversal_id)",
)

unlinked_returns = Table(
    "unlinked_returns",
    metadata,
    Column("return_id", Uuid, primary_key=True),
    Column("member_id", Uuid, primary_key=True),
    Column("is_guest", Boolean, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("store_id", Uuid, nullable=False),
    Column("till_id", Uuid, nullable=False),
    Column("receipt_no", Text, nullable=False),
    Column("returned_at", DateTime(timezone=True), nullable=False),
    Column("returned_at_offset_minutes", SmallInteger, nullable=False),
    Column("business_day", Date, nullable=False),
    Column("currency", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # Arrays of line, sku, description, category, quantity, unit price and refund.
    Column("lines", JSONB, nullable=False),
    Column("refund_minor", BigInteger, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    postgresql_partition_by="RANGE (return_id)",
)
