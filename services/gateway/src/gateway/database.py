"""The tables of the gateway's own database: each slice declares its own in this metadata."""

from sqlalchemy import MetaData

from kit.key_checks import key_checks_table

MIGRATIONS = "gateway:migrations"

metadata = MetaData()
key_checks = key_checks_table(metadata)
