"""A migrated database to copy, for tests of the member service."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import settings
from sqlalchemy.ext.asyncio import AsyncEngine

from kit.db import create_engine, migrate
from member.database import MIGRATIONS

# The same cases on every run, and no limit on one of them: machines differ, and some are busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def migrated_database(make_database: Callable[..., str]) -> str:
    """A migrated database to copy."""
    url = make_database()
    asyncio.run(migrate(url, MIGRATIONS))
    return url


@pytest.fixture
async def engine(make_database: Callable[..., str], migrated_database: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a migrated database of its own."""
    made = create_engine(make_database(migrated_database), 8)
    yield made
    await made.dispose()
