"""Wallets, lots and entries. Every key holds the member, so that a chain that outgrows one server distributes by member."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from member.database import metadata

wallets = Table(
    "wallets",
    metadata,
    Column("member_id", Uuid, primary_key=True),
    Column("programme_id", Text, primary_key=True),
    # Cached sums of the entries, proven by reconcile.
    Column("balance", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),
    Column("debt", BigInteger, nullable=False),
    # Number of the last entry.
    Column("sequence", BigInteger, nullable=False),
    # {Unix microseconds: points}: spendable points by expiry, pending points by the instant they mature.
    Column("expiries", JSONB, nullable=False),
    Column("maturities", JSONB, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

points_lots = Table(
    "points_lots",
    metadata,
    Column("member_id", Uuid, primary_key=True),
    Column("programme_id", Text, primary_key=True),
    Column("lot_id", Uuid, primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("matured", Boolean, nullable=False),
    Column("available_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("source_kind", Text, nullable=False),
    Column("source_id", Uuid, nullable=False),
    # The order of spending, of the lots that hold something.
    Index(
        "points_lots_open",
        "member_id",
        "programme_id",
        "expires_at",
        "available_at",
        "lot_id",
        postgresql_where=text("remaining > 0"),
    ),
)

points_entries = Table(
    "points_entries",
    metadata,
    Column("member_id", Uuid, primary_key=True),
    Column("programme_id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("entry_id", Uuid, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("kind", Text, nullable=False),
    Column("points", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),
    Column("debt", BigInteger, nullable=False),
    Column("expired", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("debt_after", BigInteger, nullable=False),
    Column("lot_id", Uuid),
    Column("sale_id", Uuid),
    Column("cause_id", Uuid),
    Column("reason", Text),
    # Of its lot, as it stood then: what the lot's own expiry is proven from.
    Column("expires_at", DateTime(timezone=True)),
    # Of its transaction, while `at` may be earlier: time is entered when somebody looks. Null: by the first release, which did not keep it.
    Column("recorded_at", DateTime(timezone=True)),
    postgresql_partition_by="RANGE (entry_id)",
)
