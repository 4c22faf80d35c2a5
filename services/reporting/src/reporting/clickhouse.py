"""ClickHouse, as a server or in this process: one client, one dialect, one set of migrations.

The client library blocks, so every call runs in a thread, on a connection that no other call uses meanwhile. Inserts have a
connection of their own: a long report holds up no facts.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error, OperationalError

from kit.metrics import CLICKHOUSE_DURATION, CLICKHOUSE_ERRORS
from kit.settings import SettingsInvalid
from reporting.settings import StorageSettings

log = logging.getLogger(__name__)

T = TypeVar("T")

EMBEDDED_DATABASE = "reporting"
CONNECT_SECONDS = 5
REPLY_SECONDS = 120
# For so long after it answered it is not asked whether it does.
FRESH_SECONDS = 2.0
# CANNOT_READ_ALL_DATA, CHECKSUM_DOESNT_MATCH, FILE_DOESNT_EXIST, NO_FILE_IN_DATA_PART, BAD_SIZE_OF_FILE_IN_DATA_PART, CORRUPTED_DATA,
# CANNOT_DECOMPRESS: a merge that met a full disk in its last write may leave a part so, and has its sources removed.
DAMAGED = frozenset({33, 40, 107, 226, 228, 246, 271})
# What every query is read with: a fact counts once, also before the background has merged what replaced it. A month of one part needs
# no merging, and months need none with one another, for a fact stays in its month.
READ_SETTINGS = {"final": 1, "do_not_merge_across_partitions_select_final": 1}
# A batch may bring the sales of many months at once: an import, a rebuild. No server may keep it in memory to make a larger one of it.
INSERT_SETTINGS = {"max_partitions_per_insert_block": 0, "async_insert": 0}


class ClickHouseUnavailable(Exception):
    """ClickHouse does not answer; what was asked may be asked again."""


class FactsDamaged(ClickHouseUnavailable):
    """What ClickHouse has on its disk cannot be read. They are made anew from the ledger; asking again helps only if it was restarted."""


class DataFolderInUse(Exception):
    """Another process has the embedded data open."""


class DatabaseIsNewer(Exception):
    """A newer release migrated the database."""


class ClickHouse:
    """A connection for inserts and some for reads. `async with` closes them."""

    def __init__(self, connect: Callable[[], Client], readers: int) -> None:
        self._connect = connect
        self._threads = ThreadPoolExecutor(readers + 1, thread_name_prefix="clickhouse")
        self._readers: asyncio.Queue[Client | None] = asyncio.Queue()
        for _ in range(readers):
            self._readers.put_nowait(None)
        self._writer: asyncio.Queue[Client | None] = asyncio.Queue()
        self._writer.put_nowait(None)
        self._answered_at = -FRESH_SECONDS

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connections in (self._readers, self._writer):
            while not connections.empty():
                if client := connections.get_nowait():
                    await self._in_thread(client.close)
        self._threads.shutdown(wait=True)

    async def query(
        self, statement: str, parameters: Mapping[str, object] | None = None, settings: Mapping[str, object] | None = None
    ) -> Sequence[Sequence[Any]]:
        """The rows of a SELECT, whose parameters it names as `{name:Type}`; every table is read as with FINAL.

        Raises:
            ClickHouseUnavailable: no answer; FactsDamaged: and there will be none.
            clickhouse_connect.driver.exceptions.DatabaseError: the statement failed.
        """
        given = {**READ_SETTINGS, **(settings or {})}
        return await self._on(
            self._readers, lambda client: client.query(statement, parameters=dict(parameters or {}), settings=given).result_rows, "query"
        )

    async def command(self, statement: str, parameters: Mapping[str, object] | None = None) -> None:
        """Runs a statement that has no rows, in turn with the inserts. Raises as `query` does."""
        await self._on(self._writer, lambda client: client.command(statement, parameters=dict(parameters or {})), "query")

    async def insert(self, table: str, columns: Iterable[str], block: bytes) -> None:
        """Inserts a block of rows in the Native format, with these columns. On return they are on disk.

        After an error it is not known whether they are. Raises as `query` does.
        """
        await self._on(
            self._writer,
            lambda client: client.raw_insert(table, list(columns), block, settings=dict(INSERT_SETTINGS), fmt="Native"),
            "insert",
        )

    async def answers(self) -> str:
        """For readiness: nothing when it answers, did a moment ago, or works on as many reports as it may; else a word for why not."""
        if self._readers.empty() or asyncio.get_running_loop().time() - self._answered_at < FRESH_SECONDS:
            return ""
        try:
            await self.query("SELECT 1")
        except ClickHouseUnavailable:
            return "away"
        return ""

    async def _on(self, connections: "asyncio.Queue[Client | None]", call: Callable[[Client], T], kind: str) -> T:
        """Runs `call` in a thread with a connection that is free. Connections are made when they are first needed."""
        begun = perf_counter()
        client = await connections.get()

        def run() -> T:
            nonlocal client
            if client is None:
                client = self._connect()
            return call(client)

        def ended(running: asyncio.Future[T]) -> None:
            connections.put_nowait(client)
            # Whoever waited may be gone, and then nobody asks how it ended.
            if not running.cancelled():
                running.exception()

        # Whoever waits may be cancelled; the thread goes on, and the connection is not free before it ends.
        running = asyncio.ensure_future(self._in_thread(run))
        running.add_done_callback(ended)
        try:
            answer = await asyncio.shield(running)
        except (OperationalError, OSError) as error:
            CLICKHOUSE_ERRORS.of(kind).inc()
            raise ClickHouseUnavailable(type(error).__name__) from error
        except ClickHouseError as error:
            CLICKHOUSE_ERRORS.of(kind).inc()
            # A block of an insert can be unreadable too.
            if kind == "query" and isinstance(error, Error) and error.code in DAMAGED:
                log.warning("facts on ClickHouse's disk cannot be read", extra={"error": error.name})
                raise FactsDamaged(str(error.name)) from None
            raise
        finally:
            CLICKHOUSE_DURATION.of(kind).observe(perf_counter() - begun)
        self._answered_at = asyncio.get_running_loop().time()
        return answer

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


@asynccontextmanager
async def open_clickhouse(settings: StorageSettings) -> AsyncIterator[ClickHouse]:
    """The ClickHouse of the settings; an embedded one is this process's alone until the end of the block.

    Raises:
        SettingsInvalid: neither is set, or what is set cannot be used.
        DataFolderInUse: another process has it.
    """
    if settings.clickhouse_url:
        async with ClickHouse(_server(settings.clickhouse_url, settings.clickhouse_password_file), settings.readers) as clickhouse:
            yield clickhouse
    elif settings.data_dir:
        if find_spec("chdb") is None:
            raise SettingsInvalid(
                ["Set CLICKHOUSE_URL to a server: the engine for a REPORTING_DATA_DIR (`regulars-reporting[embedded]`) is not installed."]
            )
        folder = Path(settings.data_dir)
        with _alone_in(folder):
            async with ClickHouse(embedded(folder / "engine", EMBEDDED_DATABASE), settings.readers) as clickhouse:
                yield clickhouse
    else:
        raise SettingsInvalid(["Set CLICKHOUSE_URL to a server, or REPORTING_DATA_DIR to a folder for the engine in this process."])


def _server(url: str, password_file: str) -> Callable[[], Client]:
    """Connects to a server by `http(s)://user:password@host:port/database`; the password comes from the file, if there is one."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsInvalid(["CLICKHOUSE_URL must be http(s)://user:password@host:port/database."])
    given: dict[str, Any] = {}
    if password_file:
        try:
            given["password"] = Path(password_file).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise SettingsInvalid([f"CLICKHOUSE_PASSWORD_FILE must be a file that can be read ({type(error).__name__})."]) from None

    def connect() -> Client:
        return clickhouse_connect.get_client(
            dsn=url,
            **given,
            interface=parts.scheme,
            autogenerate_session_id=False,
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=REPLY_SECONDS,
        )

    return connect


def embedded(folder: Path, database: str) -> Callable[[], Client]:
    """Connects to the engine in this process, which holds one folder at a time; makes the database if it is not there."""

    def connect() -> Client:
        client = clickhouse_connect.get_client(interface="chdb", path=str(folder))
        try:
            client.command(f"CREATE DATABASE IF NOT EXISTS {database} ENGINE = Atomic")
            client.database = database
        except BaseException:
            client.close()
            raise
        return client

    return connect


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder for this process."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataFolderInUse(f"{folder} is open in another reporting process, and only one may: ask that one, or stop it.") from None
        yield
    finally:
        os.close(lock)


def migrations() -> list[tuple[str, str]]:
    """The name and the text of each migration, in their order."""
    folder = files("reporting") / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(name.removesuffix(".sql"), (folder / name).read_text("utf-8")) for name in names]


def newest_migration() -> str:
    """The migration that this release needs."""
    return migrations()[-1][0]


async def migrate(clickhouse: ClickHouse) -> Sequence[str]:
    """Runs the migrations that were not; returns their names. Every statement may be repeated: one that was cut off runs again.

    Raises:
        DatabaseIsNewer: it has migrations that this release does not know.
    """
    await clickhouse.command(
        "CREATE TABLE IF NOT EXISTS migrations (name String, ran_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY name"
    )
    done = await migrations_done(clickhouse)
    known = migrations()
    if unknown := sorted(set(done) - {name for name, _ in known}):
        raise DatabaseIsNewer(f"The database was migrated to {unknown[-1]}, which this release does not know: run a newer one.")
    run = [(name, text) for name, text in known if name not in done]
    for name, text in run:
        for statement in _statements(text):
            await clickhouse.command(statement)
        await clickhouse.command("INSERT INTO migrations (name) VALUES ({name:String})", {"name": name})
    return [name for name, _ in run]


async def migrations_done(clickhouse: ClickHouse) -> Sequence[str]:
    """The migrations that the database has, in their order; none of a new one."""
    if not (await clickhouse.query("EXISTS TABLE migrations"))[0][0]:
        return []
    return [row[0] for row in await clickhouse.query("SELECT name FROM migrations ORDER BY name")]


def _statements(text: str) -> list[str]:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in code.split(";") if statement.strip()]
