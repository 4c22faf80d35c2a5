"""Run by `kit.db.migrate`. Migrations are written by hand and must let the release before them keep running."""

from kit.db import run_migrations
from member.database import metadata

run_migrations(metadata)
