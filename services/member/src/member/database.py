"""The tables of the member service's own database: each slice declares its own in this metadata."""

from pathlib import Path

from sqlalchemy import MetaData

from kit.key_checks import key_checks_table
from kit.outbox import outbox_table

MIGRATIONS = "member:migrations"

metadata = MetaData()
outbox = outbox_table(metadata)
key_checks = key_checks_table(metadata)


def newest_revision() -> str:
    """The revision that this release's code needs at least: the number its newest migration begins with."""
    return max(path.name[:4] for path in (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*.py"))
