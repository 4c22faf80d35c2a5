"""Taking a base backup: PostgreSQL's own `pg_basebackup`, straight into the store, and the note that it is whole last of all."""

import asyncio
import re
import subprocess
import threading
from collections.abc import Iterator
from importlib.metadata import version
from urllib.parse import urlsplit, urlunsplit

from kit.db import RawConnection, connect
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import BACKUP, FORMAT, SERVER, Backup, Part, read_json, write_json
from regulars_cli.backup.archive import Server as ArchivedServer
from regulars_cli.backup.sealing import Sealer
from regulars_cli.backup.servers import FAULTS, Facts, Server, facts_of, in_thread, last_line, now_of
from regulars_cli.backup.stores import PIECE_BYTES, Store

_START = re.compile(r"start point: (?P<lsn>[0-9A-F]+/[0-9A-F]+) on timeline (?P<timeline>\d+)")
_END = re.compile(r"end point: (?P<lsn>[0-9A-F]+/[0-9A-F]+)")
_REVISED = ("member", "gateway", "bus")


async def take_base_backup(server: Server, store: Store, sealer: Sealer, extras: dict[str, bytes], max_rate: str = "") -> Backup:
    """Backs the whole server up. `extras` are small files that go along. On return it is durable; if it raises, there is no new backup."""
    async with server.connected() as connection:
        facts = await facts_of(connection)
        own_archive(store, facts)
        # Holds the WAL of the time that it takes, and goes with the connection.
        slot = "regulars_base_" + (await now_of(connection)).strftime("%Y%m%d%H%M%S%f")
        await connection.execute("SELECT pg_create_physical_replication_slot($1, true, true)", slot)
        revisions = await _revisions(connection, server)
        started_at = await now_of(connection)
        identity = started_at.strftime("%Y%m%dT%H%M%SZ")
        folder = f"base/{identity}"
        taken = _Base(server, facts.major, max_rate)
        parts: list[Part] = []

        def store_all() -> None:
            parts.append(Part(*sealer.put(store, f"{folder}/base.tar", taken.tar())))
            parts.extend(Part(*sealer.put(store, f"{folder}/{name}", [content])) for name, content in extras.items())

        await in_thread(store_all)
        start, timeline, end = taken.points()
        backup = Backup(
            format=FORMAT,
            id=identity,
            system_identifier=facts.system_identifier,
            started_at=started_at,
            ended_at=await now_of(connection),
            timeline=timeline,
            start_lsn=start,
            end_lsn=end,
            segment_bytes=facts.segment_bytes,
            server_version=facts.version,
            release=version("regulars"),
            revisions=revisions,
            parts=parts,
        )
    await asyncio.to_thread(write_json, store, f"{folder}/{BACKUP}", backup)
    return backup


def own_archive(store: Store, facts: Facts) -> None:
    """Begins the archive of a server, or holds that it is this one's. Raises CannotBackUp where it is another's."""
    found = read_json(store, SERVER, ArchivedServer)
    if found is None:
        write_json(store, SERVER, ArchivedServer(FORMAT, facts.system_identifier, facts.segment_bytes))
    elif found.system_identifier != facts.system_identifier:
        raise CannotBackUp(f"{store.place} holds the backups of another server: give this one a place of its own.")
    elif found.format > FORMAT:
        raise CannotBackUp(f"{store.place} was written by a newer release: use that one.")


class _Base:
    """One run of pg_basebackup."""

    def __init__(self, server: Server, major: int, max_rate: str) -> None:
        conninfo, self._environment = server.connection()
        self._command = [
            *(server.program("pg_basebackup", major), "--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast"),
            *("--verbose", "--no-password", "--manifest-checksums=SHA256", f"--dbname={conninfo}"),
            *([f"--max-rate={max_rate}"] if max_rate else []),
        ]
        self._said = ""

    def tar(self) -> Iterator[bytes]:
        """The data folder as one tar. Raises CannotBackUp, at the latest after the last piece, when it is not whole."""
        with subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None  # noqa: S101  # it was asked for
            assert process.stderr is not None  # noqa: S101
            heard: list[bytes] = []
            listening = threading.Thread(target=heard.extend, args=(process.stderr,))
            listening.start()
            try:
                yield from iter(lambda: process.stdout.read(PIECE_BYTES), b"")  # type: ignore[union-attr]
            except BaseException:
                process.kill()
                raise
            finally:
                process.wait()
                listening.join()
                self._said = b"".join(heard).decode("utf-8", "replace")
        if process.returncode:
            raise CannotBackUp(f"pg_basebackup failed: {last_line(self._said)}")

    def points(self) -> tuple[str, int, str]:
        """Where its WAL starts, on which timeline, and where it ends."""
        start, end = _START.search(self._said), _END.search(self._said)
        if start is None or end is None:
            raise CannotBackUp("pg_basebackup does not say which WAL the backup needs: is it of another version?")
        return start["lsn"], int(start["timeline"]), end["lsn"]


async def _revisions(connection: RawConnection, server: Server) -> dict[str, str]:
    """The migrations that the services' databases are at, by database, so that a restore knows which release it needs."""
    found = {}
    names = {row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database WHERE datallowconn")}
    for name in sorted(names.intersection(_REVISED)):
        url = urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
        try:
            other = await connect(url, application_name="regulars-backup")
        except FAULTS:
            continue
        try:
            if await other.fetchval("SELECT to_regclass('alembic_version')") is not None:
                found[name] = str(await other.fetchval("SELECT version_num FROM alembic_version"))
        except FAULTS:
            # A role that may only replicate sees no tables.
            continue
        finally:
            other.terminate()
    return found
