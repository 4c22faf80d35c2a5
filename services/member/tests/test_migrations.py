import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import member
from kit.clock import HeldClock
from kit.crypto import PersonalDataKeys, generate
from kit.db import Migrated, create_engine, migrate, newest_revision, raw, reading, transaction
from kit.ids import uuid7
from member.database import MIGRATIONS, metadata
from member.members import tables as members_tables
from member.programmes import tables as programmes_tables
from member.programmes.files import read_definition
from member.programmes.operations import Books, apply_programme
from member.sales.rules import Store
from services.member.tests.wallet.conftest import DEMO, Chain

NOW = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
SOURCE = Path(member.__file__).parent / "migrations"


def migrations_up_to(revision: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The script location of an older release: this one's migrations up to `revision`."""
    package = f"member_at_{revision}"
    versions = folder / package / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    shutil.copy(SOURCE / "env.py", versions.parent)
    for path in (SOURCE / "versions").glob("[0-9]*.py"):
        if path.name[:4] <= revision:
            shutil.copy(path, versions)
    monkeypatch.syspath_prepend(str(folder))
    return f"{package}:migrations"


async def test_a_database_with_data_of_the_first_release_keeps_it(
    make_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database()
    assert await migrate(url, migrations_up_to("0001", tmp_path, monkeypatch)) == Migrated(None, "0001")
    engine = create_engine(url, 2)
    keys = PersonalDataKeys.parse(generate())
    for number in range(50):
        await insert_member(engine, keys, number)
    async with transaction(engine) as connection:
        await raw(connection).execute(
            """
            INSERT INTO programme_versions (programme_id, version, effective_from, definition, applied_at, applied_by)
            VALUES ('demo', 1, '2010-01-01', '{"programme_id": "demo"}', $1, 'test')
            """,
            NOW,
        )
    before = await everything(engine)

    assert await migrate(url, MIGRATIONS) == Migrated("0001", newest_revision(MIGRATIONS))

    assert await everything(engine) == before
    async with reading(engine) as connection:
        row = await raw(connection).fetchrow("SELECT member_id::text, kek_id, data_key, name FROM members ORDER BY member_id LIMIT 1")
    assert row is not None
    assert keys.data_key(row[0], row[1], row[2]).open("name", row[3]) == b"Member 0"
    await engine.dispose()


async def test_the_service_works_on_members_and_programmes_of_the_first_release(
    make_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database()
    await migrate(url, migrations_up_to("0001", tmp_path, monkeypatch))
    engine = create_engine(url, 2)
    await insert_member(engine, PersonalDataKeys.parse(generate()), 1)
    async with transaction(engine) as connection:
        await apply_programme(raw(connection), read_definition(DEMO), applied_by="test", now=NOW)
    before = await everything(engine)

    await migrate(url, MIGRATIONS)
    head = newest_revision(MIGRATIONS)
    assert await migrate(url, MIGRATIONS) == Migrated(head, head), "a second time does nothing"

    store = Store(uuid7(), "S001", ZoneInfo("Asia/Shanghai"), "CNY", "demo", 0, True)
    chain = Chain(engine, HeldClock(NOW), Books(), store)
    sale = await chain.do(chain.sale(str(before[0][0][0])))
    assert sale["points"]["balance"] == 469
    assert await chain.differences() == []
    assert await everything(engine) == before
    await engine.dispose()


async def insert_member(engine: AsyncEngine, keys: PersonalDataKeys, number: int) -> None:
    member_id = uuid7()
    key, wrapped = keys.new_data_key(member_id)
    async with transaction(engine) as connection:
        await raw(connection).execute(
            """
            INSERT INTO members (member_id, status, kek_id, data_key, name, name_index, phone, phone_index, phone_verified, joined_on,
                                 created_at)
            VALUES ($1, 'live', $2, $3, $4, $5, $6, $7, true, $8, $9)
            """,
            member_id,
            keys.kek_id,
            wrapped,
            key.seal("name", f"Member {number}".encode()),
            keys.blind_index("name", f"member {number}"),
            key.seal("phone", b"+8613800138000"),
            keys.blind_index("phone", f"{number}"),
            date(2026, 1, 1),
            NOW,
        )


async def everything(engine: AsyncEngine) -> list[Any]:
    """The rows of the first release's tables, in the columns that it had."""
    async with reading(engine) as connection:
        return [
            [tuple(row) for row in await raw(connection).fetch(f"SELECT {columns} FROM {table} ORDER BY 1")]
            for table, columns in (
                (
                    "members",
                    ", ".join(c.name for c in members_tables.members.columns if c.name not in ("programme_id", "changed_at")),
                ),
                ("programme_versions", ", ".join(programmes_tables.programme_versions.columns.keys())),
            )
        ]


async def test_the_tables_as_declared_are_those_that_the_migrations_make(engine: AsyncEngine) -> None:
    async with reading(engine) as connection:
        rows = await raw(connection).fetch(
            """
            SELECT c.relname, a.attname, a.attnotnull, format_type(a.atttypid, a.atttypmod)
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
            """
        )
    made = {(row[0], row[1]): (row[2], row[3]) for row in rows if row[0] != "alembic_version"}
    for slice_ in Path(member.__file__).parent.glob("*/tables.py"):
        import_module(f"member.{slice_.parent.name}.tables")
    declared = {
        (table.name, column.name): (not column.nullable, column.type.compile(engine.dialect).lower())
        for table in metadata.tables.values()
        for column in table.columns
    }
    assert made == declared


async def test_alembic_finds_nothing_that_the_migrations_left_out(make_database: Callable[..., str], migrated_database: str) -> None:
    """Indexes and constraints too. Months and the default of a partitioned table are made, not declared."""
    for slice_ in Path(member.__file__).parent.glob("*/tables.py"):
        import_module(f"member.{slice_.parent.name}.tables")

    def differences(connection: Connection) -> list[Any]:
        children = set(connection.scalars(text("SELECT inhrelid::regclass::text FROM pg_inherits")))

        def is_declared(_: object, name: str | None, kind: str, *_more: object) -> bool:
            return not (kind == "table" and name in children)

        context = MigrationContext.configure(connection, opts={"include_object": is_declared, "compare_type": True})
        return list(compare_metadata(context, metadata))

    # One of its own: the kit's leaves JSON as text, which SQLAlchemy needs read to look into a catalogue.
    url = make_database(migrated_database)
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()
