"""How full the disks are that hold the facts. A kubelet says it of a cluster's volumes; of a server elsewhere nobody else does."""

import asyncio
import logging

from clickhouse_connect.driver.exceptions import ClickHouseError

from kit.metrics import CLICKHOUSE_DISK_FREE, CLICKHOUSE_DISK_TOTAL, DISK
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0

# Those of our tables' storage policies: a disk for backups may be full, and reports go on. An object store has no end, and says so.
_DISKS = """
SELECT name, free_space, total_space FROM system.disks
WHERE total_space BETWEEN 1 AND 4611686018427387903 AND name IN (
    SELECT arrayJoin(disks) FROM system.storage_policies
    WHERE policy_name IN (SELECT storage_policy FROM system.tables WHERE database = currentDatabase())
)
"""


async def watch_disks(clickhouse: ClickHouse) -> None:
    """Says it every minute, until it is cancelled."""
    was_refused = False
    while True:
        try:
            await look(clickhouse)
        except ClickHouseUnavailable:
            pass  # whoever writes facts says so
        except ClickHouseError as error:
            # Facts come in all the same.
            if not was_refused:
                log.warning("the room on ClickHouse's disks cannot be read", extra={"error": type(error).__name__})
            was_refused = True
        await asyncio.sleep(LOOK_SECONDS)


async def look(clickhouse: ClickHouse) -> None:
    """Reads and exports it once. Raises as `ClickHouse.query` does."""
    found = await clickhouse.query(_DISKS)
    DISK.declare([name for name, _, _ in found])
    for name, free, total in found:
        CLICKHOUSE_DISK_FREE.of(name).set(free)
        CLICKHOUSE_DISK_TOTAL.of(name).set(total)
