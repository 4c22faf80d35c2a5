"""The tables of the member service's own database: each slice declares its own in this metadata."""

from sqlalchemy import MetaData

from kit.key_checks import key_checks_table
from kit.outbox import outbox_table

MIGRATIONS = "member:migrations"

metadata = MetaData()
outbox = outbox_table(metadata)
key_checks = key_checks_table(metadata)
