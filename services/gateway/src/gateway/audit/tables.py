"""Who asked for what with an admin key. What became of it is told by the operation."""

from sqlalchemy import Column, DateTime, Table, Text, Uuid

from gateway.database import metadata

audit_log = Table(
    "audit_log",
    metadata,
    Column("entry_id", Uuid(as_uuid=False), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("client_id", Uuid(as_uuid=False), nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    # Empty for a request that carries many, or none.
    Column("operation_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
)
