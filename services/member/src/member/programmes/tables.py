"""Versions of programmes, only ever added."""

from sqlalchemy import BigInteger, Column, Date, DateTime, Identity, Integer, Table, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB

from member.database import metadata

programme_versions = Table(
    "programme_versions",
    metadata,
    # Tells whoever holds the book that there is something new.
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("programme_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("effective_from", Date, nullable=False),
    # As `rules.definition_of` spells it out.
    Column("definition", JSONB, nullable=False),
    Column("applied_at", DateTime(timezone=True), nullable=False),
    Column("applied_by", Text, nullable=False),
    UniqueConstraint("programme_id", "version", name="programme_versions_version"),
)
