"""The board of live figures (实时看板): one reading a second for everybody who watches, and none while nobody does.

Whoever watches waits for the next state of the board and takes from it what changed since the one it saw. So a client that reads slowly
skips states and holds up nobody, and the board keeps nothing for it.
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from gateway.callers import ApiClient
from gateway.directory import Directory
from gateway.problems import too_many_streams
from gateway.reporting import ReportingService
from kit.clock import Clock
from kit.metrics import KPI_STREAMS, live
from kit.problems import Refusal
from regulars.member.v1 import wallet_service_pb2 as member_pb
from regulars.reporting.v1 import report_service_pb2 as pb

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
MOST_STREAMS = 1000

HEARTBEAT = b": still here\n\n"
UNAVAILABLE = b'event: unavailable\ndata: {"code":"reporting_unavailable"}\n\n'

_encoder = msgspec.json.Encoder()
_zone = lru_cache(ZoneInfo)


@dataclass(eq=False, slots=True)
class Watching:
    """A stream under way. `stores`: the only ones it shows; None: all."""

    client: ApiClient
    stores: frozenset[str] | None
    # The last state that it was sent; 0: none, or none since the figures were away.
    seen: int = 0
    has_said_away: bool = False


@dataclass(slots=True)
class _State:
    """What the board shows. Every reading that changes it has the next number."""

    number: int = 0
    is_away: bool = False
    as_of: str = ""
    figures: dict[str, bytes] = field(default_factory=dict)
    # The number of the state in which a store's figures last changed.
    changed: dict[str, int] = field(default_factory=dict)
    # Those who watch the same stores and saw the same state are sent the same bytes.
    rendered: dict[tuple[frozenset[str] | None, int], bytes] = field(default_factory=dict)


class KpiBoard:
    """Live figures of every store's present business day."""

    def __init__(self, directory: Directory, reporting: ReportingService, clock: Clock) -> None:
        self._directory = directory
        self._reporting = reporting
        self._clock = clock
        self._state = _State()
        self._watching: set[Watching] = set()
        # Replaced at every change: whoever waits for it wakes once.
        self._next = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()
        live(KPI_STREAMS).add(lambda: len(self._watching))

    @property
    def is_polling(self) -> bool:
        """Whether figures are being read: only while somebody watches."""
        return self._polling is not None

    def join(self, client: ApiClient, stores: frozenset[str] | None) -> Watching:
        """Begins to watch. Raises Refusal (503, too_many_streams)."""
        if len(self._watching) >= MOST_STREAMS:
            raise too_many_streams()
        watching = Watching(client, stores)
        self._watching.add(watching)
        if self._polling is None:
            # What was read before nobody watched is old.
            self._state = _State(number=self._state.number)
            # For everybody, and no part of the request that happened to be the first.
            self._polling = asyncio.create_task(self._poll(), context=contextvars.Context())
        return watching

    def leave(self, watching: Watching) -> None:
        """Ends it; the last one to leave stops the readings."""
        self._watching.discard(watching)
        if not self._watching and self._polling is not None:
            self._polling.cancel()
            self._polling = None

    def close(self) -> None:
        """Ends every stream, for the gateway stops."""
        self.closed.set()
        self._wake()

    async def events(self, watching: Watching) -> AsyncIterator[bytes]:
        """Server-sent events until the board closes or the key ends: at first all figures, then those that changed."""
        loop = asyncio.get_running_loop()
        silent_since = loop.time()
        while not self.closed.is_set() and watching in self._watching:
            waiting = self._next
            event = self._event_for(watching)
            if not event:
                with suppress(TimeoutError):
                    await asyncio.wait_for(waiting.wait(), max(silent_since + HEARTBEAT_SECONDS - loop.time(), 0))
                    continue
            yield event or HEARTBEAT
            silent_since = loop.time()

    def _event_for(self, watching: Watching) -> bytes:
        """What it has not seen; empty: nothing."""
        state = self._state
        if state.is_away:
            if watching.has_said_away:
                return b""
            watching.has_said_away, watching.seen = True, 0
            return UNAVAILABLE
        if not state.figures or watching.seen == state.number:
            return b""
        key = (watching.stores, watching.seen)
        watching.has_said_away, watching.seen = False, state.number
        event = state.rendered.get(key)
        if event is None:
            event = state.rendered[key] = _rendered(state, *key)
        return event

    async def _poll(self) -> None:
        while True:
            try:
                await self._read()
            except Refusal as refusal:
                self._lose(refusal.code)
            except Exception as error:
                # Whatever it was, those who watch are told, and the next reading may succeed.
                if not self._state.is_away:
                    log.exception("live figures cannot be read")
                self._lose(type(error).__name__)
            for watching in [each for each in self._watching if not self._directory.holds(each.client)]:
                # Its key was revoked or changed. It may come again, as what it is now.
                self._watching.discard(watching)
                self._wake()
            await asyncio.sleep(POLL_SECONDS)

    async def _read(self) -> None:
        now = self._clock.now()
        wanted = self._wanted()
        stores = [store for store in self._directory.stores() if wanted is None or store.store_id in wanted]
        found = await self._reporting.get_kpis(_store_day(store, now) for store in stores)
        state = self._state
        number = state.number + 1
        changed = {each.store_id for each in found.stores if state.figures.get(each.store_id) != each.body}
        gone = state.figures.keys() - {each.store_id for each in found.stores}
        if not changed and not gone and not state.is_away:
            return
        if state.is_away:
            log.info("live figures are back")
        self._state = _State(
            number=number,
            as_of=found.as_of,
            figures={each.store_id: each.body for each in found.stores},
            changed={each.store_id: number if each.store_id in changed else state.changed[each.store_id] for each in found.stores},
        )
        self._wake()

    def _wanted(self) -> set[str] | None:
        """The stores that anybody watches; None: all."""
        wanted: set[str] = set()
        for watching in self._watching:
            if watching.stores is None:
                return None
            wanted |= watching.stores
        return wanted

    def _lose(self, reason: str) -> None:
        if not self._state.is_away:
            log.warning("live figures are away", extra={"reason": reason})
            self._state = _State(number=self._state.number + 1, is_away=True)
            self._wake()

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()


def _store_day(store: member_pb.StoreContext, now: datetime) -> pb.StoreDay:
    """The store's present business day, as a sale of now would have it."""
    day = (now.astimezone(_zone(store.zone)) - timedelta(minutes=store.day_cut_over_minutes)).date()
    return pb.StoreDay(store_id=store.store_id, business_day=day.isoformat(), currency=store.currency)


def _rendered(state: _State, stores: frozenset[str] | None, seen: int) -> bytes:
    """The event of what changed after the state `seen` in these stores; empty when nothing did."""
    changed = [
        msgspec.Raw(body)
        for store_id, body in state.figures.items()
        if state.changed[store_id] > seen and (stores is None or store_id in stores)
    ]
    if not changed:
        return b""
    return b"event: kpis\ndata: " + _encoder.encode({"as_of": state.as_of or None, "stores": changed}) + b"\n\n"
