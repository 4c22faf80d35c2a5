"""The tables of the gateway's own database: each slice declares its own in this metadata."""

from sqlalchemy import MetaData

MIGRATIONS = "gateway:migrations"

metadata = MetaData()
