"""The tables of the member service's own database: each slice declares its own in this metadata."""

from sqlalchemy import MetaData

MIGRATIONS = "member:migrations"

metadata = MetaData()
