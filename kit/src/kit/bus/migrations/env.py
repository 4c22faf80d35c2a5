"""Run by `kit.db.migrate`. Migrations are written by hand and must let the release before them keep running."""

from sqlalchemy import MetaData

from kit.db import run_migrations

run_migrations(MetaData())
