"""Holders of keys to the API. Of a key only the SHA-256 is kept: it is 256 random bits, so the hash tells nothing."""

from sqlalchemy import ARRAY, Column, DateTime, LargeBinary, Table, Text, Uuid

from gateway.database import metadata

api_clients = Table(
    "api_clients",
    metadata,
    Column("client_id", Uuid(as_uuid=False), primary_key=True),
    Column("name", Text, nullable=False),
    Column("key_sha256", LargeBinary, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    # NULL: all stores.
    Column("store_ids", ARRAY(Uuid(as_uuid=False)), nullable=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("revoked_at", DateTime(timezone=True), nullable=True),
)
