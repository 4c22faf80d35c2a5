"""One connection to the database of the bus, opened when it is needed and again after it was lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import asyncpg

from kit.bus.interface import BusUnavailable
from kit.db import RawConnection, may_retry, open_connection

# Beyond what `kit.db` holds for transient: a statement cancelled by its time or an operator, and a server that only reads while its
# role changes. Nothing that the bus asks for is harmed by asking again.
_ALSO_TRANSIENT = frozenset({"57014", "25006"})

_SERVER_SETTINGS = {
    "jit": "off",
    "timezone": "UTC",
    # A process that stands still in the middle of a heartbeat must not keep its whole group from theirs for a lease.
    "idle_in_transaction_session_timeout": "2s",
    # Statements are planned once, perhaps while the tables are nearly empty, and must not turn slow when they fill: along the indexes
    # is always right here.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    # The locks of a process that a network cut took away are let go within seconds.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "11000",
}
# Nor must a publisher keep a partition that stands still with half of its call sent, where the server can tell (17 and later).
_BOUND_TRANSACTIONS = """
SELECT set_config('transaction_timeout', '30s', false) WHERE current_setting('server_version_num')::integer >= 170000
"""


class Link:
    """A connection for one user at a time.

    `prepare` is run on every new connection. `durable=False` lets the server confirm a commit before it is on the disk, for what may
    be forgotten in a power cut without harm.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout_seconds: float,
        durable: bool = True,
        prepare: Callable[[RawConnection], Awaitable[None]] | None = None,
    ) -> None:
        self._url = url
        self._settings = {**_SERVER_SETTINGS, "application_name": name, **({} if durable else {"synchronous_commit": "off"})}
        self._timeout_seconds = timeout_seconds
        self._prepare = prepare
        self._connection: RawConnection | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def use(self, what: str) -> AsyncIterator[RawConnection]:
        """The connection, for the block alone. `what` says in an error what could not be done.

        Raises:
            BusUnavailable: the connection could not be had or was lost in the block, or the server could not do it now.
        """
        async with self._turn:
            try:
                yield await self._open()
            except Exception as error:
                connection = self._connection
                lost = connection is not None and connection.is_closed()
                transient = lost or may_retry(error) or getattr(error, "sqlstate", None) in _ALSO_TRANSIENT
                # Without an answer of the server it is not known what the connection is still busy with.
                if lost or isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError):
                    self._drop()
                if transient and not isinstance(error, BusUnavailable):
                    raise BusUnavailable(f"PostgreSQL could not {what} ({type(error).__name__}).") from error
                raise
            except BaseException:
                # Given up in the middle: what the server still does with it is not for the next user of the connection to meet.
                self._drop()
                raise

    async def close(self) -> None:
        """Ends the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                await connection.close(timeout=1)

    async def _open(self) -> RawConnection:
        if self._connection is None or self._connection.is_closed():
            self._connection = None
            connection = await open_connection(self._url, self._settings, command_timeout=self._timeout_seconds)
            try:
                await connection.execute(_BOUND_TRANSACTIONS)
                if self._prepare is not None:
                    await self._prepare(connection)
            except BaseException:
                connection.terminate()
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
