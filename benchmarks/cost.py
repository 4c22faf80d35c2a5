"""`python -m benchmarks.cost`: what one sale costs: CPU by process, bytes by table and index, WAL, on the bus and in ClickHouse.

The database is filled by SQL to one size after another, each member with one sale, and every size is loaded through the public API. CPU is
counted, not time, so that a machine that others use too gives about the same figures. It reports and asserts nothing:
`python -m benchmarks.cost --sizes 10000,2000000 --seconds 15 --kafka local`. The figures go to benchmarks/results/cost-….
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import asyncpg
import psutil

from benchmarks.system import REPOSITORY, System
from kit.clock import SystemClock
from reporting.clickhouse import EMBEDDED_DATABASE, ClickHouse, embedded

RESULTS = REPOSITORY / "benchmarks" / "results"
BATCH = 50_000
MOST_BUYERS = 200_000
SAMPLES = 200
AT_REST_SECONDS = 10.0
IDLE_SECONDS = 1.0
# Of one process in that time, in which it has nothing to do.
IDLE_CPU_SECONDS = 0.05
MOST_IDLE_WAITS = 120

# One sale each for new members, as the writer leaves it: $1 so many, $2 operation ids begin with, $3 the answer.
FILL = """
CREATE TEMP TABLE filling ON COMMIT DROP AS
SELECT n, uuidv7() AS member_id, uuidv7() AS sale_id, uuidv7() AS lot_id, uuidv7() AS entry_id FROM generate_series(1, $1::integer) AS n;
INSERT INTO members (member_id, status, kek_id, data_key, phone_verified, joined_on, created_at)
SELECT member_id, 'live', 'none', 'none', false, current_date, now() FROM filling;
INSERT INTO wallets (member_id, programme_id, balance, pending, debt, sequence, expiries, maturities, updated_at)
SELECT member_id, 'demo', 459, 0, 0, 1, '{"1830268800000000": 459}', '{}', now() FROM filling;
INSERT INTO points_lots
SELECT member_id, 'demo', lot_id, 459, 459, 0, true, now(), '2027-12-31T16:00:00Z', 'sale', sale_id FROM filling;
INSERT INTO points_entries
SELECT member_id, 'demo', 1, entry_id, now(), 'earn', 459, 0, 0, 0, 459, 0, lot_id, sale_id, sale_id, NULL, '2027-12-31T16:00:00Z', now()
FROM filling;
INSERT INTO sales
SELECT made.* FROM filling AS f
CROSS JOIN (SELECT s AS sale FROM sales AS s ORDER BY s.sale_id DESC LIMIT 1) AS model
CROSS JOIN LATERAL json_populate_record(
  model.sale, json_build_object('sale_id', f.sale_id, 'member_id', f.member_id, 'earned_lot_id', f.lot_id)
) AS made;
INSERT INTO sale_lines
SELECT made.* FROM filling AS f
CROSS JOIN (SELECT l AS line FROM sale_lines AS l WHERE l.sale_id = (SELECT sale_id FROM sale_lines ORDER BY sale_id DESC LIMIT 1)) AS model
CROSS JOIN LATERAL json_populate_record(model.line, json_build_object('sale_id', f.sale_id, 'member_id', f.member_id)) AS made;
INSERT INTO operations
SELECT $2 || n, fingerprint, method, path, status, body, sealed, f.sale_id, f.member_id, now()
FROM filling AS f, (SELECT * FROM operations WHERE status = 201 ORDER BY decided_at DESC LIMIT 1) AS o
"""

# Each table of a database, months taken together, and each of its indexes: bytes.
RELATIONS = """
SELECT coalesce(pg_partition_root(t.oid), t.oid)::regclass::text AS of_table, 'rows' AS what, sum(pg_table_size(t.oid))::bigint AS bytes
FROM pg_class AS t WHERE t.relkind = 'r' AND t.relnamespace = 'public'::regnamespace GROUP BY 1
UNION ALL
SELECT coalesce(pg_partition_root(i.indrelid), i.indrelid)::regclass::text,
  coalesce(pg_partition_root(i.indexrelid), i.indexrelid)::regclass::text, sum(pg_relation_size(i.indexrelid))::bigint
FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid
WHERE t.relkind = 'r' AND t.relnamespace = 'public'::regnamespace GROUP BY 1, 2
"""

# What a sale looks up, each by the key it has.
LOOK_UPS = {
    "wallet by member": ("SELECT * FROM wallets WHERE member_id = $1 AND programme_id = 'demo'", "SELECT member_id FROM wallets"),
    "operation by id": ("SELECT * FROM operations WHERE operation_id = $1", "SELECT operation_id FROM operations"),
    "sale by id": ("SELECT * FROM sales WHERE sale_id = $1", "SELECT sale_id FROM sales"),
    "open lots of a member": (
        "SELECT * FROM points_lots WHERE member_id = $1 AND programme_id = 'demo' AND remaining > 0",
        "SELECT member_id FROM wallets",
    ),
}


class Cost:
    """Collects what the sales of each size cost."""

    def __init__(self, seconds: int, rounds: int) -> None:
        self.seconds = seconds
        self.rounds = rounds
        self.measured: dict[str, Any] = {"sizes": []}
        self._runs = 0

    async def measure(self, system: System, sizes: Sequence[int]) -> None:
        """Every size in turn; the last one also by tables, WAL and memory."""
        await _until_idle(system)
        self.measured["idle_memory_mib"] = system.memory_mib()
        used_before = cpu_by_part(system)
        await asyncio.sleep(AT_REST_SECONDS)
        self.measured["idle_cpu_ms_a_second"] = {
            part: (used - used_before.get(part, 0.0)) / AT_REST_SECONDS * 1000 for part, used in cpu_by_part(system).items()
        }
        buyers = await system.add_members(64)
        await self._load(system, buyers, clients=8, seconds=1)
        filled = 0
        for size in sizes:
            began = time.monotonic()
            while filled < size:
                filled += await self._fill(system, min(BATCH, size - filled))
            await system.settle()
            print(f"{size:,} members and sales are there after {time.monotonic() - began:.0f} s", flush=True)
            buyers = await _some_members(system)
            before = await _state(system)
            loads = {
                "closed loop, 64 clients": [await self._load(system, buyers, clients=64) for _ in range(self.rounds)],
                "200 sales/s": [await self._load(system, buyers, clients=64, rate=200) for _ in range(self.rounds)],
            }
            after = await _state(system)
            sales = sum(load["sales"] for of in loads.values() for load in of)
            self.measured["sizes"].append(
                {
                    "size": size,
                    "sales": sales,
                    "cpu_us_per_sale": {name: _medians(of) for name, of in loads.items()},
                    "pages_of_look_up": await _pages_of_look_ups(system),
                    "bytes_per_sale": {
                        name: (after["relations"][name] - before["relations"].get(name, 0)) / sales for name in after["relations"]
                    },
                    "bytes_in_all": after["relations"],
                    "wal_bytes_per_sale": (after["wal_bytes"] - before["wal_bytes"]) / sales,
                    "wal_full_pages_per_sale": (after["wal_fpi"] - before["wal_fpi"]) / sales,
                    "kafka_bytes_per_sale": (after["kafka"] - before["kafka"]) / sales,
                }
            )
        self.measured["memory_mib"] = system.memory_mib()
        self.measured["connections"] = after["connections"]

    async def _fill(self, system: System, number: int) -> int:
        self._runs += 1
        connection = await asyncpg.connect(system.url("member"))
        try:
            await connection.execute("SET synchronous_commit = off")
            async with connection.transaction():
                for statement in FILL.split(";\n"):
                    given = [value for name, value in (("$1", number), ("$2", f"fill-{self._runs}-")) if name in statement]
                    await connection.execute(statement.replace("$2", "$1") if "$1" not in statement else statement, *given)
        finally:
            await connection.close()
        return number

    async def _load(self, system: System, buyers: list[str], *, clients: int, rate: int = 0, seconds: int = 0) -> dict[str, Any]:
        """Sales through the public API until all of them are in the reports; CPU by part of the system."""
        self._runs += 1
        before = cpu_by_part(system)
        result = await system.sell(
            buyers, clients=clients, seconds=seconds or self.seconds, rate=rate, prefix=f"cost-{self._runs}", seed=self._runs
        )
        await _until_idle(system)
        after = cpu_by_part(system)
        sales = result["statuses"].get("201", 0)
        if result["statuses"] != {"201": sales}:
            raise RuntimeError(f"Not every sale was recorded: {result['statuses']}")
        used = {part: (after[part] - before.get(part, 0.0)) / sales * 1e6 for part in after}
        print(f"{'open' if rate else 'closed'} loop, {result['rate']:,.0f}/s: {sum(used.values()):,.0f} µs of CPU a sale", flush=True)
        return {"sales": sales, "cpu_us": used, "rate": result["rate"], "p50_ms": result["p50_ms"], "p99_ms": result["p99_ms"]}

    async def measure_facts(self, folder: Path) -> None:
        """Bytes a row of each table of facts, merged as they are after some minutes; the system has ended, so the folder is free."""
        async with ClickHouse(embedded(folder, EMBEDDED_DATABASE), readers=1) as engine:
            tables = [row[0] for row in await engine.query("SELECT name FROM system.tables WHERE database = currentDatabase()")]
            for table in tables:
                await engine.command(f"OPTIMIZE TABLE {table} FINAL")
            rows = await engine.query(
                """
                SELECT table, sum(rows), sum(bytes_on_disk), sum(data_uncompressed_bytes) FROM system.parts
                WHERE database = currentDatabase() AND active GROUP BY table HAVING sum(rows) > 1 ORDER BY table
                """
            )
        self.measured["clickhouse"] = {
            row[0]: {"rows": int(row[1]), "bytes_per_row": int(row[2]) / int(row[1]), "plain_bytes_per_row": int(row[3]) / int(row[1])}
            for row in rows
        }

    def write(self, kafka: str) -> None:
        """Prints the tables and writes them with all figures."""
        text = "\n".join(self._lines(kafka)) + "\n"
        print("\n" + text)
        name = SystemClock().now().strftime("cost-%Y-%m-%dT%H%MZ")
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps(self.measured, indent=1) + "\n")

    def _lines(self, kafka: str) -> Iterator[str]:
        sizes = self.measured["sizes"]
        yield f"# What a sale costs, {SystemClock().now():%Y-%m-%d}"
        yield ""
        yield f"{os.cpu_count()} cores that other work shared, {platform.machine()}, Python {platform.python_version()}; 3 lines a sale;"
        yield f"bus over {'Kafka' if kafka else 'PostgreSQL'}; {self.seconds} s each, medians of {self.rounds} rounds. Every size has so"
        yield "many members with one sale each, all of them in the month's partition; buyers are drawn at random."
        yield ""
        yield "## CPU µs a sale, until it is in the reports"
        yield ""
        parts = sorted({part for each in sizes for of in each["cpu_us_per_sale"].values() for part in of["cpu_us"]})
        yield f"| load | members | sales/s | p50 / p99 ms | {' | '.join(parts)} | all |"
        yield "|---" * (len(parts) + 5) + "|"
        for load in sizes[0]["cpu_us_per_sale"]:
            for each in sizes:
                of = each["cpu_us_per_sale"][load]
                used = [of["cpu_us"].get(part, 0.0) for part in parts]
                yield (
                    f"| {load} | {each['size']:,} | {of['rate']:,.0f} | {of['p50_ms']:.0f} / {of['p99_ms']:.0f} | "
                    f"{' | '.join(f'{us:.0f}' for us in used)} | {sum(used):,.0f} |"
                )
        yield ""
        yield "## Pages that a look-up reads, and WAL"
        yield ""
        yield f"| members | {' | '.join(LOOK_UPS)} | WAL bytes a sale | of them whole pages |"
        yield "|---" * (len(LOOK_UPS) + 3) + "|"
        for each in sizes:
            pages = " | ".join(f"{each['pages_of_look_up'][name]:.1f}" for name in LOOK_UPS)
            full = each["wal_full_pages_per_sale"]
            yield f"| {each['size']:,} | {pages} | {each['wal_bytes_per_sale']:,.0f} | {full:.2f} pages, at most {full * 8192:,.0f} |"
        yield ""
        yield f"## Bytes a sale on disk in PostgreSQL, over {sizes[-1]['size']:,} members"
        yield ""
        yield "| table | rows and TOAST | indexes | in all |"
        yield "|---|---|---|---|"
        of_tables: dict[str, dict[str, float]] = defaultdict(dict)
        for name, size in sizes[-1]["bytes_per_sale"].items():
            table, _, what = name.partition(" ")
            of_tables[table][what] = size
        for table, found in sorted(of_tables.items(), key=lambda item: -sum(item[1].values())):
            if sum(found.values()) >= 1:
                indexes = ", ".join(f"{name} {size:.0f}" for name, size in sorted(found.items()) if name != "rows")
                yield f"| {table} | {found.get('rows', 0):.0f} | {indexes} | {sum(found.values()):.0f} |"
        yield ""
        yield f"In all {sum(sizes[-1]['bytes_per_sale'].values()):,.0f} bytes a sale."
        if kafka:
            yield f"On Kafka, one copy, not compressed by the broker: {sizes[-1]['kafka_bytes_per_sale']:,.0f} bytes a sale."
        yield ""
        yield "## Bytes a row in ClickHouse, merged"
        yield ""
        yield "| table | rows | bytes a row on disk | not compressed |"
        yield "|---|---|---|---|"
        for table, found in self.measured["clickhouse"].items():
            yield f"| {table} | {found['rows']:,} | {found['bytes_per_row']:.1f} | {found['plain_bytes_per_row']:.0f} |"
        yield ""
        for when, name in (("Idle", "idle_memory_mib"), ("After the load", "memory_mib")):
            yield f"{when}, MiB (PSS): {', '.join(f'{part} {mib:.0f}' for part, mib in sorted(self.measured[name].items()))}."
        at_rest = ", ".join(f"{part} {ms:.1f}" for part, ms in sorted(self.measured["idle_cpu_ms_a_second"].items()))
        yield f"At rest, CPU ms a second: {at_rest}."
        yield f"Connections to PostgreSQL: {', '.join(f'{name} {count}' for name, count in self.measured['connections'].items())}."


def cpu_by_part(system: System) -> dict[str, float]:
    """CPU used so far: of each service, and of PostgreSQL by the database that it was for."""
    used: dict[str, float] = defaultdict(float)
    for process in system.processes():
        try:
            times, title = process.cpu_times(), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        mine = times.user + times.system
        if process.pid == system.server_pid:
            # With what ended connections used.
            used["postgres: itself"] += mine + times.children_user + times.children_system
        elif title.startswith("postgres: "):
            words = title.split()
            # A session's title is `postgres: user database host state`.
            database = words[2] if len(words) > 3 and words[2] in {"member", "gateway", "bus"} else "itself"
            used[f"postgres: {database}"] += mine
        else:
            used[system.name_of(process)] += mine
    used.pop("regulars", None)
    return dict(used)


async def _until_idle(system: System) -> None:
    """Returns when no service has anything left to do: what was sold is in the reports."""
    for _ in range(MOST_IDLE_WAITS):
        before = cpu_by_part(system)
        await asyncio.sleep(IDLE_SECONDS)
        after = cpu_by_part(system)
        if all(after[part] - before.get(part, 0.0) <= IDLE_CPU_SECONDS for part in ("member", "reporting")):
            return
    raise RuntimeError("The system did not come to rest.")


async def _some_members(system: System) -> list[str]:
    connection = await asyncpg.connect(system.url("member"))
    rows = await connection.fetch("SELECT member_id::text FROM wallets")
    await connection.close()
    return Random(1).sample([row[0] for row in rows], min(MOST_BUYERS, len(rows)))


async def _state(system: System) -> dict[str, Any]:
    """What is on disk and in the WAL now."""
    relations: dict[str, int] = {}
    for database in ("member",) if system.kafka else ("member", "bus"):
        connection = await asyncpg.connect(system.url(database))
        for table, what, size in await connection.fetch(RELATIONS):
            relations[f"{table} {what}"] = size
        (wal,) = await connection.fetch("SELECT wal_bytes, wal_fpi FROM pg_stat_wal")
        connections = await connection.fetch(
            "SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name LIKE 'regulars%' GROUP BY 1 ORDER BY 1"
        )
        await connection.close()
    kafka = sum(path.stat().st_size for path in system.var.glob("kafka/**/member.*/*.log"))
    return {
        "relations": relations,
        "wal_bytes": int(wal["wal_bytes"]),
        "wal_fpi": wal["wal_fpi"],
        "connections": {row[0]: row[1] for row in connections},
        "kafka": kafka,
    }


async def _pages_of_look_ups(system: System) -> dict[str, float]:
    """Pages that each look-up reads on average, in memory or not: the depth of its index and the row itself."""
    connection = await asyncpg.connect(system.url("member"))
    found: dict[str, float] = {}
    for name, (look_up, keys) in LOOK_UPS.items():
        ids = [row[0] for row in await connection.fetch(f"{keys} ORDER BY random() LIMIT {SAMPLES}")]
        pages = []
        for key in ids:
            (plan,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {look_up}", key))
            pages.append(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])
        found[name] = sum(pages) / len(pages)
    await connection.close()
    return found


def _medians(loads: Sequence[dict[str, Any]]) -> dict[str, Any]:
    parts = {part for load in loads for part in load["cpu_us"]}
    return {name: median(load[name] for load in loads) for name in ("rate", "p50_ms", "p99_ms")} | {
        "cpu_us": {part: median(load["cpu_us"].get(part, 0.0) for load in loads) for part in parts}
    }


async def main(arguments: Sequence[str]) -> None:
    """Measures everything and writes the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost", description=__doc__)
    parser.add_argument("--seconds", type=int, default=15, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="of each load")
    parser.add_argument("--sizes", default="10000,2000000", help="members, with a sale each, one measurement after the other")
    parser.add_argument("--kafka", default="", help="what `make up KAFKA=…` takes; the bus is over PostgreSQL otherwise")
    options = parser.parse_args(arguments)
    cost = Cost(options.seconds, options.rounds)
    with System(options.kafka) as system:
        await cost.measure(system, [int(size) for size in options.sizes.split(",")])
        system.stop()
        await cost.measure_facts(system.var / "clickhouse" / "engine")
    cost.write(options.kafka)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
