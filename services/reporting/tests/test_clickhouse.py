import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import clickhouse_connect
import pytest

from kit.settings import SettingsInvalid
from reporting import clickhouse as module
from reporting.clickhouse import (
    ClickHouse,
    ClickHouseUnavailable,
    DatabaseIsNewer,
    DataFolderInUse,
    migrate,
    migrations_done,
    newest_migration,
    open_clickhouse,
)
from reporting.facts.columns import COLUMNS
from reporting.settings import StorageSettings


def storage(*, url: str = "", folder: Path | str = "", password_file: Path | str = "") -> StorageSettings:
    return StorageSettings(
        clickhouse_url=url, clickhouse_password_file=str(password_file), data_dir=str(folder), readers=1, log_level="INFO"
    )


async def test_a_migration_runs_once(empty_clickhouse: ClickHouse) -> None:
    assert await migrations_done(empty_clickhouse) == []
    assert (await migrate(empty_clickhouse))[-1] == newest_migration()
    assert await migrate(empty_clickhouse) == []
    assert (await migrations_done(empty_clickhouse))[-1] == newest_migration()


async def test_a_migration_that_was_cut_off_runs_again(empty_clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module.migrations()
    name, text = whole[0]
    monkeypatch.setattr(module, "migrations", lambda: [(name, text + "\nSELECT throwIf(1);")])
    with pytest.raises(Exception, match="throwIf"):
        await migrate(empty_clickhouse)
    assert await migrations_done(empty_clickhouse) == []
    monkeypatch.setattr(module, "migrations", lambda: whole)
    assert name in await migrate(empty_clickhouse)


async def test_a_newer_database_is_refused(clickhouse: ClickHouse) -> None:
    await clickhouse.command("INSERT INTO migrations (name) VALUES ('9999_future')")
    with pytest.raises(DatabaseIsNewer, match="9999_future"):
        await migrate(clickhouse)


@pytest.mark.parametrize("table", COLUMNS)
async def test_columns_are_those_that_the_migrations_made(clickhouse: ClickHouse, table: str) -> None:
    made = await clickhouse.query(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}", {"table": table}
    )
    assert {row[0]: row[1] for row in made} == COLUMNS[table]


async def test_an_insert_is_not_held_up_by_reports(clickhouse: ClickHouse) -> None:
    slow = [asyncio.create_task(clickhouse.query("SELECT sleep(1)")) for _ in range(3)]
    await clickhouse.command("INSERT INTO first_purchases SELECT generateUUIDv4(), '2026-11-01'")
    assert not any(task.done() for task in slow)
    await asyncio.gather(*slow)


async def test_a_cancelled_query_leaves_the_connection_usable(clickhouse: ClickHouse) -> None:
    task = asyncio.create_task(clickhouse.query("SELECT sleep(0.2)"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.gather(*(clickhouse.query("SELECT 1") for _ in range(4))) == [[(1,)]] * 4


async def test_a_query_that_fails_when_nobody_waits_any_more_is_no_error_of_the_loop(clickhouse: ClickHouse) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.create_task(clickhouse.query("SELECT throwIf(sleep(0.2) = 0)"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # As many as there are connections: the one that failed is free again.
    assert await asyncio.gather(*(clickhouse.query("SELECT 1") for _ in range(4))) == [[(1,)]] * 4
    gc.collect()
    assert complaints == []


HOLDER = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


async def test_only_one_process_opens_the_data_folder(tmp_path: Path) -> None:
    with subprocess.Popen(  # noqa: ASYNC220  # it answers at once
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataFolderInUse, match="open in another reporting process"):
            async with open_clickhouse(storage(folder=tmp_path)):
                pass
        holder.stdin.close()


async def test_storage_must_be_said() -> None:
    with pytest.raises(SettingsInvalid, match=r"Set CLICKHOUSE_URL .* or REPORTING_DATA_DIR"):
        async with open_clickhouse(storage()):
            pass
    with pytest.raises(SettingsInvalid, match="CLICKHOUSE_URL must be"):
        async with open_clickhouse(storage(url="tcp://host:9000")):
            pass


async def test_without_the_engine_a_folder_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(SettingsInvalid, match=r"Set CLICKHOUSE_URL to a server: .*regulars-reporting\[embedded\]"):
        async with open_clickhouse(storage(folder=tmp_path)):
            pass


async def test_the_password_comes_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def get_client(*, password: str, **_: object) -> None:
        told.append(password)
        raise ConnectionRefusedError

    monkeypatch.setattr(clickhouse_connect, "get_client", get_client)
    file = tmp_path / "password"
    file.write_text("from the file\n")
    async with open_clickhouse(storage(url="http://reporting@127.0.0.1:1/reporting", password_file=file)) as clickhouse:
        with pytest.raises(ClickHouseUnavailable):
            await clickhouse.query("SELECT 1")
    assert told == ["from the file"]
    with pytest.raises(SettingsInvalid, match="CLICKHOUSE_PASSWORD_FILE must be a file"):
        async with open_clickhouse(storage(url="http://127.0.0.1:1", password_file=tmp_path / "missing")):
            pass
