"""Run by `kit.db.migrate`."""

from sqlalchemy import MetaData

from kit.db import run_migrations

run_migrations(MetaData())
