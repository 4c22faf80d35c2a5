"""PostgreSQL: of each database whether it answers and is of this release; of each server what else can stop it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import asyncpg

from kit.bus.connecting import POSTGRES_SCHEMES
from kit.clock import Clock
from kit.db import RawConnection, advisory_key, connect, newest_revision
from regulars_cli.backup.wal import SLOT
from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings, without_secrets

APPLICATION = "regulars-doctor"
CONNECT_SECONDS = 5.0
# What `pg_receivewal` and our statements need, and what every release is tested with.
LEAST_MAJOR, TESTED_MAJOR = 15, 18
SKEW_WARNS, SKEW_FAILS = timedelta(seconds=1), timedelta(seconds=5)
CONNECTIONS_WARN, CONNECTIONS_FAIL = 80, 95
OUTBOX_WARNS, OUTBOX_FAILS = timedelta(seconds=30), timedelta(minutes=5)
ARCHIVE_WARNS = timedelta(minutes=15)
SLOT_WARNS_MB = 2048

FAULTS = (OSError, ValueError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True)
class Database:
    """One database that a service keeps: its setting, and where its migrations are."""

    name: str
    setting: str
    migrations: str
    migrate: str


DATABASES = (
    Database("member", "MEMBER_DATABASE_URL", "member:migrations", "python -m member migrate"),
    Database("gateway", "GATEWAY_DATABASE_URL", "gateway:migrations", "python -m gateway migrate"),
    Database("bus", "BUS_URL", "kit.bus:migrations", "python -m kit.bus migrate"),
)


def databases_of(around: Surroundings) -> list[tuple[Database, str]]:
    """Those whose settings are known; the bus's only where it is one."""
    return [(each, url) for each in DATABASES if (url := around.get(each.setting)).startswith(POSTGRES_SCHEMES)]


async def check_databases(around: Surroundings) -> list[Finding]:
    """Every database, and every server once."""
    known = databases_of(around)
    found: list[Finding] = []
    servers: set[tuple[str, ...]] = set()
    for database, url in known:
        of_it = await _check(around, database, url, is_first=(server := _server_of(url)) not in servers)
        if any(finding.check == "version" for finding in of_it):
            servers.add(server)
        found += of_it
    return found


async def _check(around: Surroundings, database: Database, url: str, *, is_first: bool) -> list[Finding]:
    where = without_secrets(url)
    try:
        connection = await open_to_read(url)
    except FAULTS as error:
        return [
            failed(
                "address",
                database.name,
                f"The database {database.name} at {where} does not answer ({reason(error)}).",
                f"Start the server, or correct {database.setting}.",
            )
        ]
    try:
        async with asyncio.timeout(20):
            found = [ok("address", database.name, f"The database {database.name} at {where} answers.")]
            found.append(await _migrations(connection, database))
            if is_first:
                checks = (_version, _connections, _archiver, _slots, _recovery)
                found += [await _allowed(check, connection, database.name) for check in checks]
                found.append(await clock_of(connection, around.clock, database.name))
            if database.name == "member":
                found += [await _outbox(connection), await _relay(connection)]
            return found
    except FAULTS as error:
        said = f"The database {database.name} at {where} stopped answering ({reason(error)})."
        return [failed("address", database.name, said, "Look into the server's log.")]
    finally:
        connection.terminate()


async def open_to_read(url: str) -> RawConnection:
    """A connection whose transactions can write nothing."""
    async with asyncio.timeout(CONNECT_SECONDS):
        return await connect(
            url, application_name=APPLICATION, settings={"default_transaction_read_only": "on", "statement_timeout": "10s"}
        )


def reason(error: BaseException) -> str:
    """The kind of an error: its text may hold values."""
    code = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}{f', {code}' if code else ''}"


async def _migrations(connection: RawConnection, database: Database) -> Finding:
    found: str | None = None
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is not None:
        found = await connection.fetchval("SELECT version_num FROM alembic_version")
    advice = f"Run `{database.migrate}`; in a cluster, see why the migration's job did not end."
    if found is None:
        return failed("migrations", database.name, f"The database {database.name} was never migrated.", advice)
    try:
        newest = newest_revision(database.migrations)
    except LookupError:
        why = f"`{database.name}`, which would know its newest, is not installed here"
        return ok("migrations", database.name, f"The database {database.name} is at revision {found}; {why}.")
    if found < newest:
        said = f"The database {database.name} is at revision {found}, behind this release ({newest})."
        return failed("migrations", database.name, said, advice)
    if found > newest:
        return warning(
            "migrations",
            database.name,
            f"The database {database.name} is at revision {found}, newer than this release ({newest}).",
            "Run the newer release: after a rollback this one may serve meanwhile, as docs/upgrading.md says.",
        )
    return ok("migrations", database.name, f"The database {database.name} is at this release's revision, {found}.")


async def _allowed(check: Callable[[RawConnection, str], Awaitable[Finding]], connection: RawConnection, name: str) -> Finding:
    """A check that the database's role may lack the rights for."""
    try:
        return await check(connection, name)
    except asyncpg.InsufficientPrivilegeError:
        what = check.__name__.strip("_")
        said = f"The role of {name} may not look at the server's {what}."
        return warning(what, name, said, "Grant it pg_monitor, or look with a role that has it.")


async def _version(connection: RawConnection, name: str) -> Finding:
    number = int(await connection.fetchval("SHOW server_version_num"))
    major, minor = divmod(number, 10_000)
    text = f"PostgreSQL {major}.{minor} keeps {name}"
    if major < LEAST_MAJOR:
        return failed("version", f"postgresql of {name}", f"{text}; {LEAST_MAJOR} is the least.", f"Upgrade the server to {TESTED_MAJOR}.")
    if major < TESTED_MAJOR:
        said = f"{text}; releases are tested with {TESTED_MAJOR}."
        return warning("version", f"postgresql of {name}", said, f"Upgrade the server to {TESTED_MAJOR} when it suits.")
    return ok("version", f"postgresql of {name}", f"{text}.")


async def clock_of(connection: RawConnection, clock: Clock, name: str) -> Finding:
    """How far this machine's clock is from the server's, less what the question took."""
    before = clock.now()
    theirs: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return skew("PostgreSQL of " + name, theirs, before, clock.now())


def skew(subject: str, theirs: datetime, before: datetime, after: datetime, precision: timedelta = timedelta()) -> Finding:
    """A clock that was read between `before` and `after`; `precision` is how far what it said may be behind itself."""
    ahead = theirs - after
    behind = before - (theirs + precision)
    apart = max(ahead, behind, timedelta())
    seconds = f"{apart.total_seconds():.1f} s"
    way = "ahead of" if ahead > behind else "behind"
    advice = "Have both machines keep time (chrony, systemd-timesyncd): tokens and business days depend on it."
    if apart > SKEW_FAILS:
        return failed("clock", subject, f"The clock of {subject} is {seconds} {way} this machine's.", advice)
    if apart > SKEW_WARNS:
        return warning("clock", subject, f"The clock of {subject} is {seconds} {way} this machine's.", advice)
    return ok("clock", subject, f"The clock of {subject} is within {int(SKEW_WARNS.total_seconds())} s of this machine's.")


async def _connections(connection: RawConnection, name: str) -> Finding:
    row = await connection.fetchrow(
        """
        SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
            current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most
        """
    )
    assert row is not None  # noqa: S101  # an aggregate has one row
    used, most = int(row["used"]), int(row["most"])
    share = 100 * used // max(1, most)
    said = f"{used} of {most} connections to PostgreSQL of {name} are used"
    advice = "Lower the services' pool sizes or their replicas, put a pooler between, or raise max_connections."
    if share >= CONNECTIONS_FAIL:
        return failed("connections", name, f"{said}: the next ones are refused.", advice)
    if share >= CONNECTIONS_WARN:
        return warning("connections", name, f"{said}.", advice)
    return ok("connections", name, f"{said}.")


async def _archiver(connection: RawConnection, name: str) -> Finding:
    row = await connection.fetchrow(
        """
        SELECT current_setting('archive_mode') AS mode, a.failed_count, a.last_failed_time, a.last_archived_time,
            EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1) AS is_kept,
            clock_timestamp() - a.last_archived_time AS age, a.last_failed_time > coalesce(a.last_archived_time, '-infinity') AS failing
        FROM pg_stat_archiver AS a
        """,
        SLOT,
    )
    assert row is not None  # noqa: S101  # the view has one row
    if row["mode"] == "off" and not row["is_kept"]:
        said = f"No WAL is archived: PostgreSQL of {name} does not by itself, and it keeps none for `regulars backup wal`."
        advice = "Run `regulars backup wal` beside the system, for ever: else all since the last base backup is lost with the server."
        return warning("archiver", name, said, advice)
    if row["mode"] == "off":
        return ok("archiver", name, f"PostgreSQL of {name} archives no WAL by itself; `regulars backup wal` fetches it.")
    if row["failing"]:
        since = f"{row['last_failed_time']:%Y-%m-%d %H:%M}"
        said = f"PostgreSQL of {name} cannot archive its WAL since {since} ({row['failed_count']:,} failures)."
        return failed("archiver", name, said, "Look for archive_command in the server's log: until it succeeds, WAL fills the disk.")
    if row["age"] is None or row["age"] > ARCHIVE_WARNS:
        said = f"PostgreSQL of {name} archived its last WAL {_ago(row['age'])}."
        return warning("archiver", name, said, "Set archive_timeout, so that a quiet server archives too.")
    return ok("archiver", name, f"PostgreSQL of {name} archived its last WAL {_ago(row['age'])}.")


async def _slots(connection: RawConnection, name: str) -> Finding:
    """Slots hold WAL back until its reader has it; one that nobody reads fills the disk."""
    rows = await connection.fetch(
        """
        SELECT slot_name, coalesce(wal_status, '') AS status,
            CASE WHEN pg_is_in_recovery() THEN 0 ELSE coalesce(pg_current_wal_lsn() - restart_lsn, 0) / 1024 / 1024 END::bigint AS held_mb
        FROM pg_replication_slots ORDER BY slot_name
        """
    )
    lost = [row["slot_name"] for row in rows if row["status"] == "lost"]
    large = [row for row in rows if row["held_mb"] >= SLOT_WARNS_MB]
    if lost:
        said = f"PostgreSQL of {name} gave up the WAL of the replication slot {lost[0]}."
        return failed("slots", name, said, "What it fed has a gap: take a new base backup now, or make that replica anew.")
    if large:
        said = f"The replication slot {large[0]['slot_name']} of {name} holds {large[0]['held_mb']:,} MB of WAL back."
        return warning(
            "slots", name, said, "Start what reads it (`regulars backup wal`, a replica), or drop the slot; set max_slot_wal_keep_size."
        )
    if not rows:
        return ok("slots", name, f"PostgreSQL of {name} has no replication slots.")
    return ok(
        "slots", name, f"The replication slots of PostgreSQL of {name} hold {max(row['held_mb'] for row in rows):,} MB of WAL at most."
    )


async def _recovery(connection: RawConnection, name: str) -> Finding:
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        said = f"PostgreSQL of {name} is a standby, or still recovering: it takes no writes."
        return failed("recovery", name, said, "Wait for its recovery to end, promote it, or point the services to the primary.")
    return ok("recovery", name, f"PostgreSQL of {name} takes writes.")


async def _outbox(connection: RawConnection) -> Finding:
    if await connection.fetchval("SELECT to_regclass('outbox')") is None:
        return failed("outbox", "member", "The database member has no outbox.", "Run `python -m member migrate`.")
    # The first by position is the oldest, and found in the index; all of them need not be counted.
    row = await connection.fetchrow(
        """
        SELECT (SELECT clock_timestamp() - recorded_at FROM outbox ORDER BY position LIMIT 1) AS age,
            (SELECT count(*) FROM (SELECT FROM outbox LIMIT 10000) AS counted) AS waiting
        """
    )
    assert row is not None  # noqa: S101  # it has no FROM
    age: timedelta | None = row["age"]
    if age is None or age <= OUTBOX_WARNS:
        return ok("outbox", "member", "Events are published as they come." if age is None else f"The oldest event waits {age.seconds} s.")
    waiting = "10,000 or more" if row["waiting"] >= 10_000 else f"{row['waiting']:,}"
    said = f"{waiting} events wait to be published, the oldest for {_span(age)}."
    advice = "See whether `member relay` runs and the bus answers; its log says why events wait. Sales go on meanwhile."
    return (failed if age > OUTBOX_FAILS else warning)("outbox", "member", said, advice)


async def _relay(connection: RawConnection) -> Finding:
    """The relay that is active holds a lock; where nobody sells, an outbox without events does not tell that there is none."""
    leads = await connection.fetchval(
        """
        SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND (classid::bigint << 32 | objid::bigint) = $1)
        """,
        advisory_key("kit.bus.relay"),
    )
    if leads:
        return ok("relay", "member", "A relay of member is active.")
    said = "No relay of member is active: events of sales would wait, and reports stand still."
    return warning(
        "relay", "member", said, "Start `python -m member relay`, or read its log: one that cannot reach the bus gives up its turn."
    )


def _server_of(url: str) -> tuple[str, ...]:
    parts = urlsplit(url)
    return (parts.netloc.rpartition("@")[2], *parse_qs(parts.query).get("host", []))


def _ago(age: timedelta | None) -> str:
    return "never" if age is None else f"{_span(age)} ago"


def _span(age: timedelta) -> str:
    seconds = int(age.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60:,} minutes" if seconds < 7200 else f"{seconds // 3600:,} hours"
