"""`regulars backup wal`: fetching for ever, with an operators' port that says what could be lost now, and how old the newest base is.

What could be lost is what a restore of the newest base backup would not bring back. So it is not enough that WAL comes: it must lead from
that backup to now without a gap, on the backup's own timeline. Whether it does is seen in the archive, anew whenever fetching began again.
"""

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf

from kit.clock import Clock, SystemClock
from kit.metrics import BACKUP_LAST_RPO, BACKUP_LAST_SUCCESS, BACKUP_LAST_VERIFIED
from kit.ops import CannotListen, OpsSettings, operated, stop_when_told
from kit.settings import SettingsInvalid, load
from kit.telemetry import configure_logging
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import VERIFIED, Contents, Covered, Verified, read_contents, read_json
from regulars_cli.backup.facts import facts_are_wanted, newest_facts
from regulars_cli.backup.sealing import Sealer
from regulars_cli.backup.servers import Server
from regulars_cli.backup.stores import Store
from regulars_cli.backup.wal import Progress, fetch

log = logging.getLogger(__name__)

KIND, FACTS = "postgres", "clickhouse"
# How often the archive is looked into for base backups, which another process takes.
LOOK_SECONDS = 60.0


async def follow(server: Server, store: Store, sealer: Sealer, every_seconds: float) -> int:
    """Until SIGTERM or SIGINT. Returns the exit code."""
    configure_logging("backup", "INFO")
    clock = SystemClock()
    try:
        async with operated("backup", "wal", load(OpsSettings)) as health:
            watched = Watched(clock)
            health.require("wal", watched.what_is_wrong)
            stopping = stop_when_told(health, 0)
            looking = asyncio.create_task(_look(store, watched, stopping, facts_wanted=facts_are_wanted(os.environ)))
            health.start()
            log.info("fetching WAL", extra={"to": store.place, "encrypted": sealer.encrypts})
            await fetch(server, store, sealer, every_seconds, stopping, watched.hear)
            await looking
    except (SettingsInvalid, CannotListen) as reason:
        raise CannotBackUp(str(reason)) from None
    return 0


@dataclass(frozen=True)
class _Seen:
    """What a look into the archive found: until when its newest backup can be restored, and whether WAL of `timeline` leads on from it."""

    until: datetime
    timeline: int
    is_followed: bool


class Watched:
    """What operators see."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._covered: Covered | None = None
        self._seen: _Seen | None = None
        self._leads_on = True
        self._fault = "starting"
        # Set when what was seen in the archive may no longer be so.
        self.asks = asyncio.Event()
        # From the start on: an archive that cannot be read, or WAL that never comes, must not be silence.
        BACKUP_LAST_RPO.of(KIND).set_function(self.could_be_lost_seconds)

    def hear(self, news: Progress | str) -> None:
        """A round was done, or could not be."""
        if isinstance(news, str):
            if news != self._fault:
                log.warning("WAL cannot be fetched", extra={"reason": news})
            self._fault = news
            # It may go on elsewhere than it ended.
            self._covered = None
            return
        if self._fault:
            log.info("WAL is fetched", extra={"until": news.covered.until.isoformat()})
        self._fault = ""
        if self._covered is None:
            self._seen = self._seen and replace(self._seen, is_followed=False)
            self.asks.set()
        self._covered = news.covered

    def see(self, contents: Contents) -> None:
        """The archive was looked into, since `asks` was last cleared."""
        newest = contents.newest()
        if newest is None:
            self._seen = None
            return
        is_followed = contents.is_followed(newest) and not self.asks.is_set()
        self._seen = _Seen(contents.restorable_until(newest), newest.timeline, is_followed)
        leads_on = contents.is_followed(newest) and (self._covered is None or self._covered.timeline == newest.timeline)
        if self._leads_on and not leads_on:
            log.warning("WAL does not lead on from the newest base backup: take one now", extra={"backup": newest.id})
        self._leads_on = leads_on

    def could_be_lost_seconds(self) -> float:
        """What was committed since then would be lost with the server; infinite where the archive is not known to hold anything."""
        if self._seen is None:
            return inf
        until = self._seen.until
        if self._covered is not None and self._seen.is_followed and self._covered.timeline == self._seen.timeline:
            until = max(until, self._covered.until)
        return (self._clock.now() - until).total_seconds()

    async def what_is_wrong(self) -> str:
        return "not fetching" if self._fault else ""


async def _look(store: Store, watched: Watched, stopping: asyncio.Event, *, facts_wanted: bool) -> None:
    """Sees what the archive holds, every minute and whenever fetching began."""
    while not stopping.is_set():
        watched.asks.clear()
        try:
            contents = await asyncio.to_thread(read_contents, store)
            verified = await asyncio.to_thread(read_json, store, VERIFIED, Verified)
        except CannotBackUp as reason:
            log.warning("the archive cannot be read", extra={"reason": str(reason)})
        else:
            watched.see(contents)
            if (newest := contents.newest()) is not None:
                BACKUP_LAST_SUCCESS.of(KIND).set(newest.ended_at.timestamp())
            if verified is not None:
                BACKUP_LAST_VERIFIED.of(KIND).set(verified.at.timestamp())
        await _look_for_facts(store, wanted=facts_wanted)
        await _wait(LOOK_SECONDS, watched.asks, stopping)


async def _look_for_facts(store: Store, *, wanted: bool) -> None:
    """Tells of the newest backup of facts. Where they are wanted and there is none, it is of 1970, so that its absence is noticed."""
    try:
        newest = await asyncio.to_thread(newest_facts, store)
    except CannotBackUp as reason:
        log.warning("the newest backup of facts cannot be read", extra={"reason": str(reason)})
        return
    if newest is not None:
        BACKUP_LAST_SUCCESS.of(FACTS).set(newest.ended_at.timestamp())
    elif wanted:
        BACKUP_LAST_SUCCESS.of(FACTS).set(0)
    else:
        BACKUP_LAST_SUCCESS.remove(FACTS)


async def _wait(seconds: float, *events: asyncio.Event) -> None:
    """Until one of the events, or for so long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
