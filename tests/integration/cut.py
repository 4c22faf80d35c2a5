"""A relay between services and their broker, which does to connections what networks do: cuts, delays, silence.

It runs in a thread of its own, so that its block may hold any kind of test.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar

T = TypeVar("T")

# A Unix socket, or a host and a port.
Address = Path | tuple[str, int]
Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(eq=False)
class _Connection:
    """The two ends of one connection, and whether what they say still reaches the other."""

    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    is_heard: bool = True
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)

    def abort(self) -> None:
        self.forgotten.set()
        for end in self.ends:
            end.transport.abort()


class Relay:
    """Passes on what comes to `address`, both ways; `target` is asked anew for every connection. Runs for the block."""

    def __init__(self, address: Address, target: Callable[[], Address]) -> None:
        self.address = address
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self._may_pass: asyncio.Event
        self._is_cut = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Breaks every connection, and refuses all until `mend`."""
        self._run(self._cut())

    def break_one(self, random: Random) -> None:
        """Breaks one connection, if there is any."""
        self._run(self._break_one(random))

    def hold(self) -> None:
        """Keeps everything back until `mend`, which then lets it all go on, as packets lost on the way are sent again."""
        self._run(self._hold())

    def silence(self) -> None:
        """Swallows for ever what the connections of this moment say and that they end; new ones are passed on."""
        self._run(self._silence())

    def mend(self) -> None:
        """Passes everything on again. Connections that were silenced are broken only now: nobody was told before."""
        self._run(self._mend())

    def _run(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(30)

    async def _start(self) -> None:
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        if isinstance(self.address, Path):
            self._server = await asyncio.start_unix_server(self._accept, self.address)
        else:
            self._server = await asyncio.start_server(self._accept, *self.address)

    async def _stop(self) -> None:
        self._server.close()
        self._may_pass.set()
        await self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _cut(self) -> None:
        self._is_cut = True
        for connection in list(self._connections):
            connection.abort()

    async def _break_one(self, random: Random) -> None:
        if self._connections:
            random.choice(list(self._connections)).abort()

    async def _hold(self) -> None:
        self._may_pass.clear()

    async def _silence(self) -> None:
        for connection in self._connections:
            connection.is_heard = False

    async def _mend(self) -> None:
        self._is_cut = False
        for connection in list(self._connections):
            if not connection.is_heard:
                connection.abort()
        self._may_pass.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass_on((reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, near: Opened) -> None:
        far = await self._open()
        if far is None:
            near[1].transport.abort()
            return
        connection = _Connection((near[1], far[1]))
        if self._is_cut:
            connection.abort()
            return
        self._connections.add(connection)
        ways = [asyncio.create_task(self._pump(connection, near[0], far[1])), asyncio.create_task(self._pump(connection, far[0], near[1]))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if not connection.is_heard:
                await connection.forgotten.wait()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._connections.discard(connection)
            connection.abort()

    async def _open(self) -> Opened | None:
        """The way to the target; None when it is away."""
        try:
            target = self._target()
            opening: Awaitable[Opened] = (
                asyncio.open_unix_connection(target) if isinstance(target, Path) else asyncio.open_connection(*target)
            )
            return await opening
        except OSError:
            return None

    async def _pump(self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while said := await source.read(65536):
                await self._may_pass.wait()
                if connection.is_heard:
                    sink.write(said)
                    await sink.drain()
            await self._may_pass.wait()
