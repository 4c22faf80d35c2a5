"""The ledger proves itself while the shop is open: every wallet and sale against its entries, once a day, slowly.

It runs beside the relay that leads, so that of all processes one does it, and takes a quarter of one connection's time at most: a page is
read in one snapshot without locks, and then it rests for three times as long as that took.
"""

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter

from sqlalchemy.ext.asyncio import AsyncEngine

from kit.clock import Clock
from kit.db import may_retry, raw, transaction
from kit.metrics import LEDGER_CHECKED, LEDGER_MISMATCHES
from member.points.reconcile import Difference, reconcile_page

PAGE = 500
REST = 3
# After a relay began to lead: whoever restarts it often must not have it check all the time.
FIRST_SECONDS = 600.0
LOOK_SECONDS = 5.0
MOST_TOLD = 20

_log = logging.getLogger(__name__)


async def keep_checking(engine: AsyncEngine, clock: Clock, leads: Callable[[], bool], every_seconds: float) -> None:
    """Checks for as long as it runs and `leads` says so: first a while after that began, then `every_seconds`."""
    loop = asyncio.get_running_loop()
    due: float | None = None
    while True:
        if not leads():
            due = None
        elif due is None:
            due = loop.time() + FIRST_SECONDS
        elif loop.time() >= due:
            due = loop.time() + (every_seconds if await _try(engine, clock, leads) else FIRST_SECONDS)
        await asyncio.sleep(LOOK_SECONDS)


async def _try(engine: AsyncEngine, clock: Clock, leads: Callable[[], bool]) -> bool:
    try:
        return await check(engine, clock, leads)
    except Exception as error:  # noqa: BLE001  # relaying goes on, whatever became of the check
        if not may_retry(error):
            _log.exception("the ledger could not be checked")
        else:
            _log.info("the ledger's check is put off", extra={"error": type(error).__name__})
        return False


async def check(engine: AsyncEngine, clock: Clock, leads: Callable[[], bool]) -> bool:
    """Proves all there is, and says what was found; False when it stopped because another leads."""
    found: list[Difference] = []
    wallets, token = 0, ""
    begun = perf_counter()
    while leads():
        page_begun = perf_counter()
        async with transaction(engine, snapshot=True) as connection:
            page = await reconcile_page(raw(connection), clock.now(), size=PAGE, page_token=token, rebuild=False)
        wallets += page.wallets
        found += page.differences
        token = page.next_page_token
        if not token:
            _tell(found, wallets, perf_counter() - begun)
            LEDGER_MISMATCHES.of("wallets").set(len(found))
            LEDGER_CHECKED.of("wallets").set(clock.now().timestamp())
            return True
        await asyncio.sleep((perf_counter() - page_begun) * REST)
    return False


def _tell(found: list[Difference], wallets: int, seconds: float) -> None:
    for each in found[:MOST_TOLD]:
        about = {"figure": each.figure, "member_id": each.member_id, "programme_id": each.programme_id, "subject_id": each.subject_id}
        _log.error("the ledger does not prove a figure", extra=about)
    _log.info("the ledger was checked", extra={"wallets": wallets, "differences": len(found), "seconds": round(seconds, 1)})
