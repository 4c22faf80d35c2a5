"""Fetching WAL as it is written: PostgreSQL's own `pg_receivewal` into a spool, and from there into the store.

The archive itself says what it has: a start looks there for the newest segment and goes on behind it. What the server keeps for us is held
by a replication slot, which moves on only when a segment is durable in the store. So a death at any line, also of the machine with the
spool, leaves an archive without a gap; a segment may be stored twice, the same both times.

Of the segment that is being written a copy is stored every few seconds, and then the note up to when everything committed is there.
"""

import asyncio
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kit.db import RawConnection, advisory_key
from kit.waiting import wait_at_most
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import (
    COVERED,
    PARTIAL,
    Covered,
    lsn_number,
    lsn_text,
    object_of,
    read_contents,
    segment_name,
    segment_number,
    write_checksum,
    write_json,
)
from regulars_cli.backup.bases import own_archive
from regulars_cli.backup.sealing import Sealer
from regulars_cli.backup.servers import FAULTS, Facts, Server, facts_of, in_thread, last_line, now_of, reason
from regulars_cli.backup.stores import PIECE_BYTES, Store

log = logging.getLogger(__name__)

SLOT = "regulars_backup"
RECEIVER = "regulars-backup-wal"
# Two that fetch at once would take turns with the copy of the newest segment, and one of them might be behind.
_ONE_AT_A_TIME = advisory_key("regulars.backup.wal")
_POLL_SECONDS = 0.1
# A server that stands still sends nothing; what it has written is here within this.
_CATCH_UP_SECONDS = 30.0


class FetchedElsewhere(CannotBackUp):
    """Another process fetches the WAL of this server."""


@dataclass(frozen=True)
class Progress:
    """Where fetching stands."""

    covered: Covered
    segments: int


async def has_slot(connection: RawConnection) -> bool:
    """Whether somebody began to fetch the server's WAL, so that it is kept for them."""
    return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", SLOT))


async def fetch_once(server: Server, store: Store, sealer: Sealer) -> Progress:
    """Fetches everything that is committed by now. Raises FetchedElsewhere."""
    done = asyncio.Event()
    progress: list[Progress] = []

    def heard(found: Progress) -> None:
        progress.append(found)
        done.set()

    await _session(server, store, sealer, 0.0, done, heard)
    return progress[-1]


async def fetch(
    server: Server, store: Store, sealer: Sealer, every_seconds: float, stopping: asyncio.Event, heard: Callable[[Progress | str], None]
) -> None:
    """Fetches until told to stop, whatever goes and comes back; `heard` is told how far it is, or what it waits for.

    Raises:
        CannotBackUp: it never will go on by itself.
    """
    pause = 0.5
    while not stopping.is_set():
        try:
            await _session(server, store, sealer, every_seconds, stopping, heard)
            pause = 0.5
        except (SlotLost, FetchedElsewhere) as error:
            heard(str(error))
        except CannotBackUp as error:
            heard(str(error))
        except FAULTS as error:
            heard(f"PostgreSQL went away ({reason(error)}).")
        await wait_at_most(stopping, pause)
        pause = min(2 * pause, 15.0)


class SlotLost(CannotBackUp):
    """The server no longer has the WAL that comes next."""


async def _session(
    server: Server, store: Store, sealer: Sealer, every_seconds: float, stopping: asyncio.Event, heard: Callable[[Progress], None]
) -> None:
    """From connecting until told to stop, but at least one whole round."""
    with tempfile.TemporaryDirectory(prefix="regulars-wal-") as spool:
        async with server.connected() as connection:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _ONE_AT_A_TIME):
                raise FetchedElsewhere("Another process fetches the WAL of this server: one does.")
            facts = await facts_of(connection)
            await asyncio.to_thread(own_archive, store, facts)
            number = await _next_segment(connection, store, facts)
            # It begins with what a run before left unfinished.
            (Path(spool) / (segment_name(facts.timeline, number, facts.segment_bytes) + PARTIAL)).touch()
            # One that a killed process left behind writes for nobody.
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE starts_with(application_name, $1)", RECEIVER
            )
            name = f"{RECEIVER}-{connection.get_server_pid()}"
            shipping = _Shipping(store, sealer, facts, Path(spool), connection, number)
            async with _Receiver(server, facts.major, Path(spool), name) as receiver:
                while True:
                    began = asyncio.get_running_loop().time()
                    heard(await shipping.round(receiver))
                    if stopping.is_set():
                        return
                    took = asyncio.get_running_loop().time() - began
                    await wait_at_most(stopping, max(_POLL_SECONDS, every_seconds - took))


async def _next_segment(connection: RawConnection, store: Store, facts: Facts) -> int:
    """The number of the segment with which to go on, which the server is made to keep."""
    contents = await asyncio.to_thread(read_contents, store)
    # One whose checksum is not noted yet is stored again, if the server still has it: the slot moves on after that.
    archived = [
        each.number
        for each in contents.segments
        if each.timeline == facts.timeline and not each.is_partial and each.object.name in contents.checksums
    ]
    row = await connection.fetchrow(
        "SELECT restart_lsn::text AS lsn, coalesce(wal_status, '') AS status FROM pg_replication_slots WHERE slot_name = $1", SLOT
    )
    if row is not None and (row["status"] == "lost" or row["lsn"] is None):
        # What it held is gone. A new one begins with what there is; the gap ends with the next base backup.
        await connection.execute("SELECT pg_drop_replication_slot($1)", SLOT)
        row = None
    if row is None:
        await connection.execute("SELECT pg_create_physical_replication_slot($1, true)", SLOT)
        lsn = await connection.fetchval("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", SLOT)
    else:
        lsn = row["lsn"]
    kept_from = lsn_number(str(lsn)) // facts.segment_bytes
    following = max(archived) + 1 if archived else kept_from
    if row is None and contents.segments:
        log.warning(
            "the replication slot was gone and is made anew: WAL from before it may be missing, so take a base backup now",
            extra={"slot": SLOT, "timeline": facts.timeline, "is_gap": not archived or kept_from > following},
        )
    # Segments of before may have been removed from the server, when the slot was made anew.
    return max(following, kept_from)


class _Receiver:
    """One run of pg_receivewal, without a slot: only we know what is durable."""

    def __init__(self, server: Server, major: int, spool: Path, name: str) -> None:
        conninfo, self._environment = server.connection()
        self._environment |= {"PGAPPNAME": name}
        # As the server knows it: what another run has received is not in this spool.
        self.name = name
        self._command = (
            server.program("pg_receivewal", major),
            f"--directory={spool}",
            "--no-loop",
            "--status-interval=1",
            "--no-password",
            f"--dbname={conninfo}",
        )
        self._said = bytearray()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  # it was asked for
        while piece := await self._process.stderr.read(4096):
            self._said += piece
            del self._said[:-4096]

    async def check(self) -> None:
        """Raises CannotBackUp if it ended."""
        if self._process.returncode is None:
            return
        await self._listening
        said = self._said.decode("utf-8", "replace")
        if "has already been removed" in said:
            raise SlotLost("The server no longer has the WAL that comes next: take a base backup now; before the gap all can be restored.")
        raise CannotBackUp(f"pg_receivewal ended: {last_line(said)}")


class _Shipping:
    """Moves what comes into the spool to the store, and the slot behind it."""

    def __init__(self, store: Store, sealer: Sealer, facts: Facts, spool: Path, connection: RawConnection, number: int) -> None:
        self._store = store
        self._sealer = sealer
        self._facts = facts
        self._spool = spool
        self._connection = connection
        # Nothing before this is stored again.
        self._next = number
        self._shipped = 0
        self._partial: tuple[str, str] | None = None
        self._histories: set[str] = set()

    async def round(self, receiver: _Receiver) -> Progress:
        """Stores everything that was committed when it was called, and says so in the archive."""
        until = await now_of(self._connection)
        lsn = str(await self._connection.fetchval("SELECT pg_current_wal_flush_lsn()::text"))
        await self._has_come(receiver, lsn)
        timeline = self._facts.timeline
        await in_thread(lambda: self._ship_what_stays(lsn))
        await self._release()
        covered = Covered(until, lsn, timeline)
        await asyncio.to_thread(write_json, self._store, object_of(timeline, COVERED), covered)
        return Progress(covered, self._shipped)

    async def _has_come(self, receiver: _Receiver, lsn: str) -> None:
        """Returns when the receiver has written everything up to `lsn`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CATCH_UP_SECONDS
        last = ""
        while True:
            await receiver.check()
            row = await self._connection.fetchrow(
                "SELECT write_lsn::text AS lsn, write_lsn >= $2::text::pg_lsn AS done FROM pg_stat_replication WHERE application_name = $1"
                " LIMIT 1",
                receiver.name,
                lsn,
            )
            if row is not None and row["done"]:
                return
            if row is not None and row["lsn"] != last:
                # It may be far behind, and comes nearer.
                last, deadline = row["lsn"], loop.time() + _CATCH_UP_SECONDS
            if loop.time() > deadline:
                raise CannotBackUp("The server sends no WAL: may the role see pg_stat_replication (pg_monitor)?")
            await asyncio.sleep(_POLL_SECONDS)

    def _ship_what_stays(self, lsn: str) -> None:
        """A file may be given its final name between being seen and being read."""
        while True:
            try:
                self._ship(lsn)
            except FileNotFoundError:
                continue
            return

    def _ship(self, lsn: str) -> None:
        """In a thread: stores what is whole, in order, then the copy of what is being written."""
        size = self._facts.segment_bytes
        for path in sorted(self._spool.iterdir()):
            if path.suffix == ".history" and path.name not in self._histories:
                self._put_whole(path)
                self._histories.add(path.name)
            elif len(path.name) == 24 and segment_number(path.name, size) >= self._next:
                self._put_whole(path)
                self._store.delete(object_of(int(path.name[:8], 16), path.name + PARTIAL) + self._sealer.suffix)
                self._next = segment_number(path.name, size) + 1
                self._shipped += 1
            elif (
                path.suffix == PARTIAL
                and (path.name, lsn) != self._partial
                and lsn_number(lsn) > segment_number(path.name[:24], size) * size
            ):
                self._sealer.put(self._store, object_of(int(path.name[:8], 16), path.name), _pieces(path))
                self._partial = (path.name, lsn)
        if self._next * size < lsn_number(lsn) and (self._partial is None or self._partial[1] != lsn):
            raise CannotBackUp(f"pg_receivewal has not written what the server sent it up to {lsn}.")
        # The newest stays: the receiver goes on behind it.
        for path in sorted(each for each in self._spool.iterdir() if len(each.name) == 24)[:-1]:
            path.unlink()

    def _put_whole(self, path: Path) -> None:
        name, _, sha256 = self._sealer.put(self._store, object_of(int(path.name[:8], 16), path.name), _pieces(path))
        write_checksum(self._store, name, sha256)

    async def _release(self) -> None:
        """Has the server keep only what is not in the store. Raises SlotLost where it keeps nothing for us."""
        await self._connection.execute(
            "SELECT pg_replication_slot_advance(slot_name, $2::text::pg_lsn) FROM pg_replication_slots"
            " WHERE slot_name = $1 AND restart_lsn < $2::text::pg_lsn",
            SLOT,
            lsn_text(self._next * self._facts.segment_bytes),
        )
        if not await has_slot(self._connection):
            raise SlotLost("The replication slot was dropped.")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(lambda: file.read(PIECE_BYTES), b"")
