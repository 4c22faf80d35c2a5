"""Stores and their tills (门店、收银机)."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, ForeignKey, SmallInteger, Table, Text, UniqueConstraint, Uuid

from gateway.database import metadata

stores = Table(
    "stores",
    metadata,
    Column("store_id", Uuid(as_uuid=False), primary_key=True),
    Column("code", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    # IANA time zone; a business day is a day there.
    Column("zone", Text, nullable=False),
    Column("currency", Text, nullable=False),
    Column("programme_id", Text, nullable=False),
    # Minutes after midnight at which a business day starts.
    Column("day_cut_over_minutes", SmallInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

tills = Table(
    "tills",
    metadata,
    Column("till_id", Uuid(as_uuid=False), primary_key=True),
    Column("store_id", Uuid(as_uuid=False), ForeignKey("stores.store_id"), nullable=False),
    Column("code", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    UniqueConstraint("store_id", "code", name="tills_code"),
)

# One row. Its version moves with every change of stores, tills and API clients.
directory_state = Table(
    "directory_state",
    metadata,
    Column("one_row", Boolean, primary_key=True),
    Column("version", BigInteger, nullable=False),
)
