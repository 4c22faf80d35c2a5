"""Backups of a real PostgreSQL, restored as of moments, with deaths at every line of taking them."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import httpx
import pytest

from kit.clock import HeldClock, SystemClock
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import (
    BACKUP,
    VERIFIED,
    Backup,
    Contents,
    Covered,
    Part,
    Segment,
    Verified,
    lsn_text,
    read_contents,
    read_json,
    segment_name,
    segment_number,
)
from regulars_cli.backup.bases import take_base_backup
from regulars_cli.backup.checking import Fault, prunable, verify
from regulars_cli.backup.following import Watched
from regulars_cli.backup.restoring import Owner, Plan, plan, restore
from regulars_cli.backup.sealing import Opener, Sealer, new_identity
from regulars_cli.backup.servers import Server, facts_of
from regulars_cli.backup.stores import Folder, Store, Stored
from regulars_cli.backup.wal import SLOT, FetchedElsewhere, Progress, fetch_once
from regulars_cli.main import main
from regulars_cli.up.postgres import EmbeddedPostgres
from tests.integration.system import wait_until

CLOCK = HeldClock(datetime(2026, 11, 22, 14, 15, tzinfo=UTC))
NOWHERE = "postgresql://nobody@127.0.0.1:9/member"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that root's PostgreSQL can reach."""
    with tempfile.TemporaryDirectory(prefix="regulars-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(folder / "data", settings={"max_connections": "20", "shared_buffers": "32MB"}) as server:
        execute(server.url(), "CREATE TABLE sales (id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())")
        yield server


@pytest.fixture
def server(postgres: EmbeddedPostgres) -> Iterator[Server]:
    execute(postgres.url(), "TRUNCATE sales")
    yield Server(postgres.url(), postgres.binaries)
    execute(postgres.url(), f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}'")


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "backups")


def execute(url: str, sql: str) -> Any:
    async def act() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(act())


def sell(server: Server, number: int) -> datetime:
    """A sale, and when it was surely committed, by the server's clock."""
    execute(server.url, f"INSERT INTO sales (id) VALUES ({number})")
    at: datetime = execute(server.url, "SELECT clock_timestamp()")
    return at


def base(server: Server, store: Store, sealer: Sealer | None = None) -> str:
    return asyncio.run(take_base_backup(server, store, sealer or Sealer(), {})).id


def wal(server: Server, store: Store, sealer: Sealer | None = None) -> None:
    asyncio.run(fetch_once(server, store, sealer or Sealer()))


def restored(store: Store, place: Path, at: datetime | None = None, identity: Path | None = None) -> list[int]:
    """The sales that are there after a restore as of then."""
    found = EmbeddedPostgres(place).find_place()
    owner = Owner(found.account.given, found.account.options()) if found.account else None
    chosen = plan(read_contents(store), at)
    restore(store, chosen, Opener(identity), place, Server("", found.binaries), CLOCK, lambda _: None, owner=owner)
    assert not list(place.parent.glob(f"{place.name}.restoring"))
    assert not (place / "regulars_wal").exists()
    with EmbeddedPostgres(place, settings={"max_connections": "20", "shared_buffers": "32MB"}) as again:
        sales: list[int] = execute(again.url(), "SELECT array_agg(id ORDER BY id) FROM sales") or []
        assert execute(again.url(), "SELECT pg_is_in_recovery()") is False
        # What follows is written as ever.
        execute(again.url(), "INSERT INTO sales (id) VALUES (-1)")
    return sales


@pytest.mark.timeout(180)
@pytest.mark.parametrize("encrypted", [False, True])
def test_any_moment_after_a_base_backup_comes_back(server: Server, store: Folder, tmp_path: Path, folder: Path, encrypted: bool) -> None:  # noqa: FBT001
    identity = tmp_path / "identity.txt" if encrypted else None
    sealer = Sealer([new_identity(identity)] if identity else [])
    sell(server, 1)
    wal(server, store, sealer)
    base(server, store, sealer)
    second = sell(server, 2)
    execute(server.url, "SELECT pg_switch_wal()")
    third = sell(server, 3)
    execute(server.url, "DELETE FROM sales WHERE id < 3")
    wal(server, store, sealer)
    place = folder / f"restored-{encrypted}"
    assert restored(store, place, second, identity) == [1, 2]
    # Over what is there now, which is set aside.
    assert restored(store, place, third, identity) == [1, 2, 3]
    assert (place.with_name(f"{place.name}.before-20261122T141500Z") / "PG_VERSION").exists()
    assert restored(store, folder / f"latest-{encrypted}", None, identity) == [3]
    # Nothing was committed between the last commit and what the archive covers: that moment can be had too.
    covered = read_contents(store).covered[1].until
    assert restored(store, folder / f"covered-{encrypted}", covered, identity) == [3]
    with pytest.raises(CannotBackUp, match="The archive reaches to"):
        plan(read_contents(store), covered + timedelta(seconds=1))
    with pytest.raises(CannotBackUp, match="nothing before that can be restored"):
        plan(read_contents(store), second - timedelta(days=1))
    for found in verify(store, read_contents(store), list(read_contents(store).backups), Opener(identity)):
        assert not isinstance(found, Fault)


def test_root_is_told_at_once_that_nothing_can_be_recovered(
    server: Server, store: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base(server, store)
    for path in Path(store.place).glob("base/*/base.tar*"):
        # Who fetches before refusing says that it is missing.
        path.unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["restore", "--from", store.place, "--to", str(tmp_path / "data")]) == 1
    assert "PostgreSQL does not run as root" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_base_backup_alone_comes_back(server: Server, store: Folder, folder: Path) -> None:
    sell(server, 7)
    base(server, store)
    sell(server, 8)
    assert restored(store, folder / "alone") == [7]


class Dying:
    """A store whose process dies at the n-th thing that it does: that, and nothing after it, has no effect."""

    def __init__(self, store: Store, acts: int) -> None:
        self._store = store
        self._left = acts
        self.died = False

    @property
    def place(self) -> str:
        return self._store.place

    def _act(self) -> None:
        if self._left == 0 or self.died:
            self.died = True
            raise KeyboardInterrupt
        self._left -= 1

    def put(self, name: str, pieces: Iterable[bytes]) -> None:
        def slowly() -> Iterator[bytes]:
            for piece in pieces:
                self._act()
                yield piece

        self._store.put(name, slowly())
        self._act()

    def get(self, name: str) -> Iterator[bytes]:
        return self._store.get(name)

    def list(self, prefix: str) -> list[Stored]:
        return self._store.list(prefix)

    def delete(self, name: str) -> None:
        self._act()
        self._store.delete(name)
        self._act()


@pytest.mark.timeout(300)
def test_a_death_at_any_line_leaves_the_older_backup_and_no_half_one(server: Server, store: Folder, folder: Path) -> None:
    sell(server, 1)
    wal(server, store)
    first = base(server, store)
    acts, number = 0, 1
    while True:
        dying = Dying(store, acts)
        number += 1
        sell(server, number)
        execute(server.url, "SELECT pg_switch_wal()")
        try:
            wal(server, dying)
            whole = base(server, dying)
        except (KeyboardInterrupt, BaseExceptionGroup):
            assert dying.died
        else:
            break
        contents = read_contents(store)
        assert [each.id for each in contents.backups] == [first]
        assert contents.gap_after(contents.backups[0]) is None
        acts += 1
    assert acts > 5
    contents = read_contents(store)
    assert [each.id for each in contents.backups] == [first, whole]
    assert contents.gap_after(contents.backups[0]) is None
    wal(server, store)
    # Through everything that died, from the first.
    chosen = plan(read_contents(store), None, first)
    assert len(chosen.wal) >= acts
    assert not [found for found in verify(store, read_contents(store), list(contents.backups), Opener()) if isinstance(found, Fault)]
    assert restored(store, folder / "after-deaths") == list(range(1, number + 1))


@contextmanager
def fetching(server: Server, store: Folder, ops: str = "") -> Iterator["subprocess.Popen[bytes]"]:
    """`regulars backup wal` as it runs beside a system."""
    environment = {**os.environ, "BACKUP_DATABASE_URL": server.url, "BACKUP_TO": store.place, "PG_BIN": str(server.programs)}
    environment["OPS_LISTEN"] = ops
    command = [sys.executable, "-m", "regulars_cli.main", "backup", "wal", "--every", "1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()


@pytest.mark.timeout(180)
def test_wal_is_fetched_as_it_is_written_and_through_kills(server: Server, store: Folder, folder: Path) -> None:
    def covers(at: datetime) -> bool:
        covered = read_contents(store).covered.get(1)
        return covered is not None and covered.until >= at

    with fetching(server, store) as process:
        wait_until(lambda: covers(datetime(2026, 1, 1, tzinfo=UTC)), "WAL is fetched", 60)
        with pytest.raises(FetchedElsewhere):
            wal(server, store)
        base(server, store)
        at = sell(server, 1)
        wait_until(lambda: covers(at), "a sale is in the archive", 30)
        process.send_signal(signal.SIGKILL)
    for number in range(2, 5):
        sell(server, number)
        execute(server.url, "SELECT pg_switch_wal()")
    with socket.create_server(("127.0.0.1", 0)) as free:
        ops = f"127.0.0.1:{free.getsockname()[1]}"
    with fetching(server, store, ops) as process:
        at = sell(server, 5)
        wait_until(lambda: covers(at), "what was written meanwhile is in the archive", 60)
        metrics = httpx.get(f"http://{ops}/metrics", trust_env=False).text
        told = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("regulars_backup"))
        taken = read_contents(store).backups[-1].ended_at.timestamp()
        assert float(told['regulars_backup_last_success_timestamp_seconds{kind="postgres"}']) == pytest.approx(taken)
        assert 0 <= float(told['regulars_backup_last_rpo_seconds{kind="postgres"}']) < 30
        assert httpx.get(f"http://{ops}/readyz", trust_env=False).status_code == 200
        # What cannot be restored is lost, however fast WAL comes. The slot goes with what it held.
        execute(server.url, f"SELECT pg_drop_replication_slot('{SLOT}')")
        wait_until(lambda: has_slot_now(server), "the slot is made anew", 60)
        process.terminate()
        assert process.wait(30) == 0
    # The server keeps no more than what is not there yet.
    held = execute(server.url, f"SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
    assert held <= 2 * 16 * 1024 * 1024
    assert restored(store, folder / "through-kills") == [1, 2, 3, 4, 5]


def has_slot_now(server: Server) -> bool:
    return bool(execute(server.url, f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))


def told_by(ops: str) -> dict[str, float]:
    """What the part exports of backups."""
    text = httpx.get(f"http://{ops}/metrics", trust_env=False).text
    found = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("regulars_backup"))
    return {name.removeprefix("regulars_backup_").partition("{")[0]: float(value) for name, value in found}


@pytest.mark.timeout(180)
def test_what_could_be_lost_is_told_from_the_start_and_counts_from_a_gap(server: Server, store: Folder) -> None:
    def covers(at: datetime) -> bool:
        covered = read_contents(store).covered.get(1)
        return covered is not None and covered.until >= at

    with socket.create_server(("127.0.0.1", 0)) as free:
        ops = f"127.0.0.1:{free.getsockname()[1]}"
    # Nothing answers there: no round ever succeeds, and there is no backup.
    with fetching(Server(NOWHERE, server.programs), store, ops):
        wait_until(lambda: answers(ops), "the part answers operators", 60)
        assert told_by(ops)["last_rpo_seconds"] == inf
    wal(server, store)
    base(server, store)
    wal(server, store)
    execute(server.url, f"SELECT pg_drop_replication_slot('{SLOT}')")
    for number in range(3):
        sell(server, number)
        execute(server.url, "SELECT pg_switch_wal()")
    execute(server.url, "CHECKPOINT")
    ended = read_contents(store).backups[0].ended_at
    with fetching(server, store, ops):
        at = sell(server, 5)
        wait_until(lambda: covers(at), "WAL comes again", 60)
        # WAL is seconds old; what can be restored is the base backup alone.
        wait_until(lambda: (SystemClock().now() - ended).total_seconds() >= 3, "some seconds have passed", 30)
        assert told_by(ops)["last_rpo_seconds"] >= 3
        assert (SystemClock().now() - ended).total_seconds() == pytest.approx(told_by(ops)["last_rpo_seconds"], abs=1.5)
    base(server, store)
    with fetching(server, store, ops):
        at = sell(server, 6)
        wait_until(lambda: covers(at), "WAL comes after a base backup", 60)
        newest = read_contents(store).backups[-1].ended_at
        wait_until(lambda: told_by(ops)["last_rpo_seconds"] < (SystemClock().now() - newest).total_seconds() - 2, "the gap is over", 60)


def answers(ops: str) -> bool:
    with suppress(httpx.TransportError):
        return "last_rpo_seconds" in told_by(ops)
    return False


def test_what_could_be_lost_is_told_by_what_can_be_restored() -> None:
    started = CLOCK.now() - timedelta(hours=5)
    ended = started + timedelta(minutes=1)
    size = 16 * 1024 * 1024
    backup = Backup(
        format=1, id="20261122T091500Z", system_identifier="1", started_at=started, ended_at=ended, timeline=1, segment_bytes=size,
        start_lsn=lsn_text(2 * size), end_lsn=lsn_text(2 * size + 500), server_version="18.0", release="0", parts=[],
    )  # fmt: skip

    def contents(*numbers: int, until: datetime, timeline: int = 1) -> Contents:
        segments = [Segment(timeline, number, False, Stored(str(number), size, started)) for number in numbers]
        covered = Covered(until, lsn_text((numbers[-1] + 1) * size), timeline)
        return Contents(None, [backup], {}, segments, {}, {timeline: covered})

    def progress(ago: timedelta, timeline: int = 1) -> Progress:
        return Progress(Covered(CLOCK.now() - ago, lsn_text(9 * size), timeline), 0)

    second, minute, hour = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
    watched = Watched(CLOCK)
    assert watched.could_be_lost_seconds() == inf
    watched.see(contents(2, 3, until=CLOCK.now() - hour))
    assert watched.could_be_lost_seconds() == 3600
    # It goes on, maybe behind a gap: only the archive says whether.
    watched.hear(progress(second))
    assert watched.could_be_lost_seconds() == 3600
    assert watched.asks.is_set()
    watched.asks.clear()
    watched.see(contents(2, 3, 4, until=CLOCK.now() - minute))
    assert watched.could_be_lost_seconds() == 1
    watched.hear("PostgreSQL went away.")
    assert watched.could_be_lost_seconds() == 60
    watched.hear(progress(second))
    watched.asks.clear()
    watched.see(contents(2, 3, 7, until=CLOCK.now() - minute))
    assert watched.could_be_lost_seconds() == (CLOCK.now() - ended).total_seconds()
    # A standby was promoted: its WAL is of another timeline than the newest base backup.
    watched.hear("PostgreSQL went away.")
    watched.hear(progress(second, timeline=2))
    watched.asks.clear()
    watched.see(contents(2, 3, until=CLOCK.now() - hour))
    assert watched.could_be_lost_seconds() == 3600


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "base/link"])
def test_a_base_backup_writes_nothing_but_files_of_its_folder(tmp_path: Path, name: str) -> None:
    store, identity, packed = Folder(tmp_path / "backups"), tmp_path / "identity.txt", io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE if name == "base/link" else tarfile.REGTYPE, "/"
        tar.addfile(member)
    # More than anything between reader and writer holds.
    content = [packed.getvalue(), Random(1).randbytes(20_000_000)]
    stored, size, digest = Sealer([new_identity(identity)]).put(store, "base/20261122T091500Z/base.tar", content)
    backup = Backup(
        format=1, id="20261122T091500Z", system_identifier="1", started_at=CLOCK.now(), ended_at=CLOCK.now(), timeline=1,
        segment_bytes=16 * 1024 * 1024, start_lsn="0/2000028", end_lsn="0/2000100", server_version="18.0", release="0",
        parts=[Part(stored, size, digest)],
    )  # fmt: skip
    target = tmp_path / "within" / "data"
    with pytest.raises(CannotBackUp, match="no file or folder of a data folder") as raised:
        restore(store, Plan(backup, [], None, CLOCK.now()), Opener(identity), target, Server(NOWHERE), CLOCK, print, recovers=False)
    assert not list(tmp_path.glob("within/*"))
    # The command can end, also while it tells where it broke.
    assert raised.tb is not None
    assert not [thread for thread in threading.enumerate() if thread.name == "sealing"]


def test_a_slot_that_is_made_anew_is_warned_of(server: Server, store: Folder, caplog: pytest.LogCaptureFixture) -> None:
    wal(server, store)
    assert not caplog.records
    execute(server.url, f"SELECT pg_drop_replication_slot('{SLOT}')")
    wal(server, store)
    assert "take a base backup now" in caplog.text


def test_the_timeline_is_that_of_what_is_written_and_not_of_the_last_checkpoint(server: Server) -> None:
    async def both() -> tuple[int, str]:
        async with server.connected() as connection:
            return (await facts_of(connection)).timeline, await connection.fetchval("SELECT pg_walfile_name(pg_current_wal_lsn())")

    timeline, name = asyncio.run(both())
    assert int(name[:8], 16) == timeline


@pytest.mark.parametrize("is_opened", [False, True])
def test_encrypted_wal_is_proven_without_the_identity(
    server: Server,
    store: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_opened: bool,  # noqa: FBT001
) -> None:
    identity = tmp_path / "identity.txt"
    sealer = Sealer([new_identity(identity)])
    wal(server, store, sealer)
    base(server, store, sealer)
    sell(server, 1)
    execute(server.url, "SELECT pg_switch_wal()")
    sell(server, 2)
    wal(server, store, sealer)
    command = ["backup", "verify", "--from", store.place, *(["--identity", str(identity)] if is_opened else [])]
    assert main(command) == 0, capsys.readouterr().out
    marked = read_json(store, VERIFIED, Verified)
    assert marked is not None
    assert (SystemClock().now() - marked.at).total_seconds() < 60
    contents = read_contents(store)
    segment = next(each for each in contents.segments if not each.is_partial and each.number > contents.backups[0].last_segment)
    path = Path(store.place) / segment.object.name
    raw = path.read_bytes()
    path.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    store.delete(VERIFIED)
    capsys.readouterr()
    assert main(command) == 1
    assert f"{segment.object.name} is not what was stored" in capsys.readouterr().out or is_opened
    assert read_json(store, VERIFIED, Verified) is None
    # Without a checksum nobody can say: that is not good.
    path.write_bytes(raw)
    store.delete(segment.object.name + ".sha256")
    assert main(command) == (0 if is_opened else 1)
    assert ("has no checksum" in capsys.readouterr().out) != is_opened
    assert (read_json(store, VERIFIED, Verified) is not None) == is_opened


def test_a_segment_whose_checksum_was_not_stored_is_stored_again(server: Server, store: Folder) -> None:
    wal(server, store)
    execute(server.url, "SELECT pg_switch_wal()")
    sell(server, 1)

    class NoChecksum(Dying):
        def put(self, name: str, pieces: Iterable[bytes]) -> None:
            if name.endswith(".sha256"):
                raise CannotBackUp("full")
            self._store.put(name, pieces)

    with pytest.raises(CannotBackUp, match="full"):
        wal(server, NoChecksum(store, -1))
    bare = [each.object.name for each in read_contents(store).segments if not each.is_partial]
    assert bare
    assert bare[-1] not in read_contents(store).checksums
    wal(server, store)
    contents = read_contents(store)
    assert {each.object.name for each in contents.segments if not each.is_partial} == contents.checksums.keys()


def test_a_gap_is_seen_and_ends_with_the_next_base_backup(server: Server, store: Folder) -> None:
    wal(server, store)
    base(server, store)
    execute(server.url, f"SELECT pg_drop_replication_slot('{SLOT}')")
    for number in range(3):
        sell(server, number)
        execute(server.url, "SELECT pg_switch_wal()")
    execute(server.url, "CHECKPOINT")
    wal(server, store)
    contents = read_contents(store)
    assert contents.gap_after(contents.backups[0]) is not None
    assert contents.restorable_until(contents.backups[0]) == contents.backups[0].ended_at
    faults = [found for found in verify(store, contents, list(contents.backups), Opener()) if isinstance(found, Fault)]
    assert ["WAL is missing" in each.sentence for each in faults] == [True]
    base(server, store)
    wal(server, store)
    contents = read_contents(store)
    assert contents.gap_after(contents.backups[1]) is None
    assert contents.restorable_until(contents.backups[1]) > contents.backups[1].ended_at


def test_what_was_changed_or_removed_is_found(server: Server, store: Folder, folder: Path) -> None:
    wal(server, store)
    base(server, store)
    sell(server, 1)
    execute(server.url, "SELECT pg_switch_wal()")
    wal(server, store)
    contents = read_contents(store)
    root = Path(store.place)
    segment = next(each for each in contents.segments if not each.is_partial and each.number > contents.backups[0].last_segment)
    base_name = contents.backups[0].parts[0].name
    for name in (segment.object.name, base_name):
        raw = (root / name).read_bytes()
        (root / name).write_bytes(raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :])
    faults = {found.name for found in verify(store, contents, list(contents.backups), Opener()) if isinstance(found, Fault)}
    assert faults == {segment.object.name, base_name}
    with pytest.raises(CannotBackUp, match=r"damaged|not what was stored"):
        restored(store, folder / "damaged")
    assert not (folder / "damaged").exists()
    assert not (folder / "damaged.restoring").exists()
    (root / base_name).unlink()
    faults = {found.name for found in verify(store, contents, list(contents.backups), Opener()) if isinstance(found, Fault)}
    assert base_name in faults


def test_pruning_keeps_the_newest_and_what_they_need(server: Server, store: Folder, folder: Path) -> None:
    kept = []
    for number in range(4):
        wal(server, store)
        wait_until(lambda: f"{execute(server.url, 'SELECT clock_timestamp()'):%Y%m%dT%H%M%SZ}" not in kept, "a second has passed", 5)
        kept.append(base(server, store))
        sell(server, number)
        execute(server.url, "SELECT pg_switch_wal()")
    wal(server, store)
    contents = read_contents(store)
    old, objects = prunable(contents, 2, CLOCK.now())
    assert [each.id for each in old] == kept[:2]
    for cut in range(len(objects) + 1):
        # Deleted up to here, and then the machine died.
        if cut:
            store.delete(objects[cut - 1].name)
        now = read_contents(store)
        assert [each.id for each in now.backups][-2:] == kept[2:]
        assert all(now.gap_after(each) is None for each in now.backups[-2:])
    contents = read_contents(store)
    assert [each.id for each in contents.backups] == kept[2:]
    assert not contents.unfinished
    assert min(each.number for each in contents.segments) == contents.backups[0].first_segment
    assert prunable(contents, 2, CLOCK.now()) == ([], [])
    assert restored(store, folder / "pruned") == [0, 1, 2, 3]


def test_what_was_cut_off_goes_only_when_it_is_old(store: Folder) -> None:
    store.put("base/20261122T140000Z/base.tar.zst", [b"half"])
    now = datetime(2026, 11, 22, 15, tzinfo=UTC)
    assert list(read_contents(store).unfinished) == ["20261122T140000Z"]
    contents = read_contents(store)
    assert prunable(contents, 1, now + timedelta(days=9)) == ([], []), "nothing is removed while there is no backup at all"


def test_an_archive_is_of_one_server(server: Server, store: Folder) -> None:
    base(server, store)
    other = {"format": 1, "system_identifier": "1", "segment_bytes": 16777216}
    (Path(store.place) / "archive.json").write_text(json.dumps(other))
    with pytest.raises(CannotBackUp, match="another server"):
        base(server, store)
    with pytest.raises(CannotBackUp, match="another server"):
        wal(server, store)


def test_keys_are_never_beside_backups(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKUP_DATABASE_URL", server.url)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "personal_data.json").write_text("{}")
    for place in (tmp_path, tmp_path / "keys", tmp_path / "keys" / "backups"):
        assert main(["backup", "run", "--to", str(place), "--var", str(tmp_path / "var")]) == 1
        assert "beside the backups" in capsys.readouterr().err
        assert not (place / "archive.json").exists()


def test_the_password_is_in_no_command_line() -> None:
    conninfo, environment = Server("postgresql://backup:hunter2@db:5432/member?sslmode=require").connection()
    assert conninfo == "postgresql://backup@db:5432?sslmode=require"
    assert environment["PGPASSWORD"] == "hunter2"


def test_segments_are_named_as_postgresql_names_them() -> None:
    size = 16 * 1024 * 1024
    assert segment_name(1, 0x1_00 * 3 + 7, size) == "000000010000000300000007"
    assert segment_number("000000010000000300000007", size) == 0x1_00 * 3 + 7
    assert BACKUP == "backup.json"
    assert Contents(None, [], {}, [], {}, {}).newest() is None
