"""`regulars backup wal`: fetching for ever, with an operators' port that says what could be lost now, and how old the newest base is."""

import asyncio
import logging
from datetime import datetime
from functools import partial

from kit.clock import Clock, SystemClock
from kit.metrics import BACKUP_LAST_RPO, BACKUP_LAST_SUCCESS
from kit.ops import CannotListen, OpsSettings, operated, stop_when_told
from kit.settings import SettingsInvalid, load
from kit.telemetry import configure_logging
from kit.waiting import wait_at_most
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import read_contents
from regulars_cli.backup.sealing import Sealer
from regulars_cli.backup.servers import Server
from regulars_cli.backup.stores import Store
from regulars_cli.backup.wal import Progress, fetch

log = logging.getLogger(__name__)

KIND = "postgres"
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
            looking = asyncio.create_task(_look(store, stopping))
            health.start()
            log.info("fetching WAL", extra={"to": store.place, "encrypted": sealer.encrypts})
            await fetch(server, store, sealer, every_seconds, stopping, watched.hear)
            await looking
    except (SettingsInvalid, CannotListen) as reason:
        raise CannotBackUp(str(reason)) from None
    return 0


class Watched:
    """What operators see."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._covered: datetime | None = None
        self._fault = "starting"

    def hear(self, news: Progress | str) -> None:
        """A round was done, or could not be."""
        if isinstance(news, str):
            if news != self._fault:
                log.warning("WAL cannot be fetched", extra={"reason": news})
            self._fault = news
            return
        if self._fault:
            log.info("WAL is fetched", extra={"until": news.covered.until.isoformat()})
        self._fault = ""
        if self._covered is None:
            BACKUP_LAST_RPO.of(KIND).set_function(self.could_be_lost_seconds)
        self._covered = news.covered.until

    def could_be_lost_seconds(self) -> float:
        """What was committed since then would be lost with the server."""
        return (self._clock.now() - self._covered).total_seconds() if self._covered else 0.0

    async def what_is_wrong(self) -> str:
        return "not fetching" if self._fault else ""


async def _look(store: Store, stopping: asyncio.Event) -> None:
    """Sees when the newest base backup was taken; until it knows of one it says nothing."""
    while not stopping.is_set():
        try:
            newest = (await asyncio.to_thread(partial(read_contents, store))).newest()
        except CannotBackUp as reason:
            log.warning("the archive cannot be read", extra={"reason": str(reason)})
        else:
            if newest is not None:
                BACKUP_LAST_SUCCESS.of(KIND).set(newest.ended_at.timestamp())
        await wait_at_most(stopping, LOOK_SECONDS)
