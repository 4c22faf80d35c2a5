"""The writes that the gateway itself decided, with their answers."""

from sqlalchemy import Column, DateTime, LargeBinary, SmallInteger, Table, Text

from gateway.database import metadata

operations = Table(
    "operations",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("decided_at", DateTime(timezone=True), nullable=False),
)
