"""ClickHouse, where it is a server: the engine inside `reporting` is reporting's alone, and seen through it."""

import asyncio
import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import httpx

from regulars_cli.clickhouse import ClickHouse, Refused
from regulars_cli.doctor.databases import skew
from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings, without_secrets

SECONDS = 10.0
# The oldest that releases are tested with.
LEAST = (25, 8)
DISK_WARNS, DISK_FAILS = 15, 5


async def check_facts(around: Surroundings) -> list[Finding]:
    """All about ClickHouse."""
    url = around.get("CLICKHOUSE_URL")
    if not url:
        return []
    where = without_secrets(url)
    try:
        async with asyncio.timeout(3 * SECONDS), httpx.AsyncClient(timeout=SECONDS, trust_env=False) as http:
            ask = ClickHouse(http, url, around.get("CLICKHOUSE_PASSWORD_FILE"))
            before = around.clock.now()
            ((now,),) = await ask("SELECT toUnixTimestamp64Micro(now64(6))")
            after = around.clock.now()
            theirs = datetime.fromtimestamp(int(now) / 1e6, UTC)
            return [
                ok("address", "clickhouse", f"ClickHouse at {where} answers."),
                skew("ClickHouse", theirs, before, after),
                await _version(ask),
                await _migrations(ask),
                *await _disks(ask),
            ]
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        said = f"ClickHouse at {where} does not answer ({type(error).__name__})."
        return [failed("address", "clickhouse", said, "Start it, or correct CLICKHOUSE_URL. Sales go on; events wait on the bus for it.")]
    except Refused as refused:
        said = f"ClickHouse at {where} refuses ({refused})."
        return [failed("address", "clickhouse", said, "Correct user, password or database in CLICKHOUSE_URL.")]


async def _version(ask: ClickHouse) -> Finding:
    ((text,),) = await ask("SELECT version()")
    major, minor, *_ = (int(part) for part in text.split(".")[:2])
    if (major, minor) < LEAST:
        said = f"ClickHouse {text} keeps the facts; releases are tested with {LEAST[0]}.{LEAST[1]} and later."
        return warning("version", "clickhouse", said, "Upgrade it to the newest long-term release.")
    return ok("version", "clickhouse", f"ClickHouse {text} keeps the facts.")


async def _migrations(ask: ClickHouse) -> Finding:
    newest = newest_migration()
    ((is_there,),) = await ask("EXISTS TABLE migrations")
    done = [row[0] for row in await ask("SELECT DISTINCT name FROM migrations ORDER BY name")] if is_there == "1" else []
    found = done[-1] if done else "no migration"
    if newest is None:
        return ok("migrations", "clickhouse", f"ClickHouse is at {found}; `reporting`, which would know its newest, is not installed here.")
    if newest not in done and (not done or done[-1] < newest):
        said = f"ClickHouse is at {found}, behind this release ({newest})."
        return failed("migrations", "clickhouse", said, "Run `python -m reporting migrate`.")
    if done[-1] > newest:
        said = f"ClickHouse is at {found}, newer than this release ({newest})."
        return warning("migrations", "clickhouse", said, "Run the newer release.")
    return ok("migrations", "clickhouse", f"ClickHouse is at this release's migration, {newest}.")


def newest_migration() -> str | None:
    """The newest that this release has, found without loading the service; None where it is not installed."""
    home = importlib.util.find_spec("reporting")
    if home is None or not home.submodule_search_locations:
        return None
    return max(path.stem for path in (Path(home.submodule_search_locations[0]) / "migrations").glob("*.sql"))


async def _disks(ask: ClickHouse) -> list[Finding]:
    found = []
    for name, free, total in await ask("SELECT name, free_space, total_space FROM system.disks"):
        if not 0 < int(total) < 2**62:
            continue
        percent = 100 * int(free) // int(total)
        said = f"The disk {name} of ClickHouse has {int(free) // 1024**2:,} MB left ({percent} %)"
        advice = "Make room or a larger disk: when it is full, events wait on the bus."
        if percent < DISK_FAILS:
            found.append(failed("disk", f"clickhouse {name}", f"{said}.", advice))
        elif percent < DISK_WARNS:
            found.append(warning("disk", f"clickhouse {name}", f"{said}.", advice))
        else:
            found.append(ok("disk", f"clickhouse {name}", f"{said}."))
    return found
