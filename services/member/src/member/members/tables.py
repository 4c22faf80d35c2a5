"""Member files. Columns of bytes hold personal values, sealed under the member's own data key or indexed blindly (kit.crypto)."""

from sqlalchemy import Boolean, Column, Date, DateTime, Index, LargeBinary, Table, Text, Uuid, text

from member.database import metadata

members = Table(
    "members",
    metadata,
    Column("member_id", Uuid, primary_key=True),
    # live, or erased: the key destroyed, the id kept for the ledgers.
    Column("status", Text, nullable=False),
    # The key-encryption key under which the data key is wrapped.
    Column("kek_id", Text),
    Column("data_key", LargeBinary),
    Column("name", LargeBinary),
    Column("name_index", LargeBinary),
    Column("phone", LargeBinary),
    Column("phone_index", LargeBinary),
    Column("phone_verified", Boolean, nullable=False),
    Column("card", LargeBinary),
    Column("card_index", LargeBinary),
    Column("birthday", LargeBinary),
    # Of the month and day.
    Column("birthday_index", LargeBinary),
    Column("gender", Text),
    Column("city", Text),
    Column("country", Text),
    Column("joined_on", Date, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    # In which it was signed up. Null: by the first release, which did not keep it.
    Column("programme_id", Text),
    # Null: never, or by the first release.
    Column("changed_at", DateTime(timezone=True)),
    Index(
        "members_one_per_verified_phone",
        "phone_index",
        unique=True,
        postgresql_where=text("phone_verified AND status = 'live'"),
    ),
    Index("members_one_per_card", "card_index", unique=True, postgresql_where=text("status = 'live'")),
    Index("members_by_phone", "phone_index", "member_id", postgresql_where=text("status = 'live' AND phone_index IS NOT NULL")),
    Index("members_by_name", "name_index", "member_id", postgresql_where=text("status = 'live' AND name_index IS NOT NULL")),
    Index("members_by_birthday", "birthday_index", "member_id", postgresql_where=text("status = 'live' AND birthday_index IS NOT NULL")),
    Index("members_by_kek", "kek_id", postgresql_where=text("kek_id IS NOT NULL")),
)
