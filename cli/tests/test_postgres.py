"""The embedded PostgreSQL: durable, private, and able to come back."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from regulars_cli.up import CannotStart, postgres
from regulars_cli.up.postgres import SETTINGS, EmbeddedPostgres


async def test_each_database_is_new_and_apart(make_database: Callable[..., str]) -> None:
    first = make_database()
    connection = await asyncpg.connect(first)
    await connection.execute("CREATE TABLE t AS SELECT 1 AS x")
    await connection.close()
    copy = await asyncpg.connect(make_database(template=first))
    assert await copy.fetchval("SELECT x FROM t") == 1
    await copy.close()
    other = await asyncpg.connect(make_database())
    assert await other.fetchval("SELECT to_regclass('t')") is None
    await other.close()


async def test_data_survives_a_restart_and_is_durable(reachable_path: Path) -> None:
    for expected in (0, 1):
        with EmbeddedPostgres(reachable_path / "data") as server:
            connection = await asyncpg.connect(server.url())
            await connection.execute("CREATE TABLE IF NOT EXISTS t (x int)")
            assert await connection.fetchval("SELECT count(*) FROM t") == expected
            await connection.execute("INSERT INTO t VALUES (1)")
            for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
                assert await connection.fetchval("SELECT current_setting($1)", name) == "on"
            await connection.close()
    assert not {"fsync", "synchronous_commit", "full_page_writes"} & set(SETTINGS)


def test_only_its_own_user_can_reach_the_server(reachable_path: Path) -> None:
    with EmbeddedPostgres(reachable_path / "data") as server:
        folder = Path(parse_qs(urlsplit(server.url()).query)["host"][0])
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert server.spec().command.count("listen_addresses=") == 1


def test_a_long_path_gets_a_short_socket(reachable_path: Path) -> None:
    folder = reachable_path / ("long-" * 20)
    folder.mkdir(mode=0o711)
    with EmbeddedPostgres(folder / "data") as server:
        assert len(str(server.socket_dir)) < 60
    assert not server.socket_dir.exists()


def test_a_second_server_on_the_same_data_is_refused(reachable_path: Path) -> None:
    with EmbeddedPostgres(reachable_path / "data"), pytest.raises(CannotStart, match=r"Another PostgreSQL \(process \d+\) runs on"):
        EmbeddedPostgres(reachable_path / "data").start()


def test_a_stale_pid_file_that_names_a_foreign_process_is_no_obstacle(reachable_path: Path) -> None:
    server = EmbeddedPostgres(reachable_path / "data")
    server.prepare()
    (reachable_path / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{reachable_path}/data\n")
    with server:
        assert server.is_ready()


def test_data_of_another_version_is_left_alone(reachable_path: Path) -> None:
    data = reachable_path / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("19\n")
    with pytest.raises(CannotStart, match=r"is of PostgreSQL 19, this release runs 18"):
        EmbeddedPostgres(data).start()


def test_a_checkout_that_only_its_owner_may_enter_works(reachable_path: Path) -> None:
    private = reachable_path / "private"
    private.mkdir(mode=0o700)
    for _ in range(2):
        with EmbeddedPostgres(private / "data") as server:
            assert server.is_ready()
    if os.geteuid() == 0:
        # The server runs as another user, who cannot enter: its data is elsewhere.
        assert (private / "data").is_symlink()
        assert server.data_dir.is_relative_to("/var/lib/regulars")
    else:
        assert server.data_dir == private / "data"


def test_programs_run_from_their_copy(reachable_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "SHELTER", reachable_path)
    copy = postgres._copy_to_shelter(postgres._installation())
    assert copy.is_relative_to(reachable_path)
    said = subprocess.run([copy / "bin" / "initdb", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("initdb (PostgreSQL) 18")
