"""ClickHouse behind HTTP in a process of its own, since a process has one engine: prints its address, then `migrated` when `reports` is."""

import asyncio
import signal
import sys
from pathlib import Path

from reporting.clickhouse import ClickHouse, embedded, migrate
from services.reporting.tests.server import serving


def main(folder: Path, configuration: Path | None = None) -> None:
    """Serves until SIGTERM."""

    async def prepare() -> None:
        async with ClickHouse(embedded(folder, "reports"), 1) as clickhouse:
            await migrate(clickhouse)

    with serving(folder, configuration) as url:
        print(url, flush=True)
        asyncio.run(prepare())
        print("migrated", flush=True)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(*map(Path, sys.argv[1:]))
