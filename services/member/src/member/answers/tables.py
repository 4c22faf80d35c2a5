"""What was decided on every write, for ever."""

from sqlalchemy import Boolean, Column, DateTime, LargeBinary, SmallInteger, Table, Text, Uuid

from member.database import metadata

operations = Table(
    "operations",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    # The answer as it was sent; sealed under the member's data key where it holds personal data.
    Column("body", LargeBinary, nullable=False),
    Column("sealed", Boolean, nullable=False),
    # What was made: a sale, a reversal, a member. Null for a refusal.
    Column("subject_id", Uuid),
    # Whose it is, where it is a member's.
    Column("member_id", Uuid),
    Column("decided_at", DateTime(timezone=True), nullable=False),
)
