"""`make bench`: a sale through the public API beside pgbench on the same PostgreSQL, in one run.

It reports and asserts nothing. Options shorten it: `python -m benchmarks --seconds 10 --members 10000,100000 --no-import`.
The figures go to benchmarks/results/, as a table (.md) and whole (.json).
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.system import REPOSITORY, System
from kit.clock import SystemClock

RESULTS = REPOSITORY / "benchmarks" / "results"
REAL_FILE = REPOSITORY.parent / "shared" / "data" / "online_retail" / "online_retail.csv.gz"
CLIENTS = (64, 128)


async def main(arguments: Sequence[str]) -> None:
    """Measures everything and writes the table."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of pgbench and sales in turn, over the middle number of members")
    parser.add_argument("--members", default="10000,100000,1000000", help="how many members, one measurement each")
    parser.add_argument("--file", type=Path, default=REAL_FILE, help="the file to import")
    parser.add_argument("--no-import", action="store_true")
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.members.split(",")]
    bench = Bench(options.seconds, options.rounds)
    with System() as system:
        bench.measured["ready_seconds"] = system.start_seconds
        await asyncio.sleep(5)
        bench.measured["idle_memory_mib"] = system.memory_mib()
        members: list[str] = []
        for size in sizes:
            members += await system.add_members(size - len(members))
            await system.settle()
            await bench.measure(system, members, whole=size == sizes[min(1, len(sizes) - 1)])
        bench.measured["memory_after_mib"] = system.memory_mib()
        if not options.no_import and options.file.exists():
            await system.settle()
            bench.import_file(system, options.file)
    bench.write()


class Bench:
    """Collects rows and figures, and writes them."""

    def __init__(self, seconds: int, rounds: int) -> None:
        self.seconds = seconds
        self.rounds = rounds
        self.rows: list[dict[str, Any]] = []
        self.measured: dict[str, Any] = {}
        self._runs = 0

    async def measure(self, system: System, members: list[str], *, whole: bool) -> None:
        """Rounds over so many members: pgbench, then the same time of sales, again and again, since a machine's speed drifts.

        With `whole`, each round also has more clients, one hot member, and half load. A row is the median of its rounds, and its ratio
        the median of the ratios to the pgbench of the same round.
        """
        rows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)

        async def load(name: str, of: list[str], clients: int, rate: int = 0) -> dict[str, Any]:
            row = await self._load(system, name, of, clients, rate=rate)
            row["of_pgbench"] = row["rate"] / pgbench
            rows[name, clients].append(row)
            return row

        for _ in range(self.rounds if whole else 1):
            pgbench = self._pgbench(system)
            for clients in CLIENTS if whole else CLIENTS[:1]:
                spread = await load("spread", members, clients)
                if whole:
                    hot = await load("one member", members[:1], clients)
                    hot["of_spread"] = hot["rate"] / spread["rate"]
            if whole:
                await load("half load", members, CLIENTS[0], int(rows["spread", CLIENTS[0]][-1]["rate"] / 2))
        self.rows += [_median(of_one) for of_one in rows.values()]

    def _pgbench(self, system: System) -> float:
        tps = system.pgbench(self.seconds)
        self.measured.setdefault("pgbench", []).append(tps)
        print(f"pgbench TPC-B: {tps:,.0f}/s", flush=True)
        return tps

    async def _load(self, system: System, name: str, members: list[str], clients: int, *, rate: int = 0) -> dict[str, Any]:
        await system.settle()
        self._runs += 1
        before = system.cpu_seconds()
        result = await system.sell(members, clients=clients, seconds=self.seconds, rate=rate, prefix=f"bench-{self._runs}", seed=self._runs)
        after = system.cpu_seconds()
        answered = sum(result["statuses"].values())
        used = {name: (after[name] - before.get(name, 0.0)) / answered * 1e6 for name in after} | {
            "load": result["cpu_seconds"] / answered * 1e6
        }
        row = result | {"what": name, "members": len(members), "clients": clients, "cpu_us_per_sale": used}
        print(f"{name}, {len(members):,} members, {clients} clients: {row['rate']:,.0f}/s, p99 {row['p99_ms']:.0f} ms", flush=True)
        return row

    def import_file(self, system: System, file: Path) -> None:
        """The whole real file through `regulars import sales`."""
        report = system.var / "import.json"
        command = [str(Path(sys.executable).with_name("regulars")), "import", "sales", str(file), "--mapping", "online-retail"]
        subprocess.run([*command, "--report", str(report), "--var", str(system.var)], check=True)
        self.measured["import"] = json.loads(report.read_text())

    def write(self) -> None:
        """Prints the table and writes it with all figures."""
        text = "\n".join(self._lines()) + "\n"
        print("\n" + text)
        RESULTS.mkdir(exist_ok=True)
        name = SystemClock().now().strftime("%Y-%m-%dT%H%MZ")
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps({"rows": self.rows, **self.measured}, indent=1) + "\n")

    def _lines(self) -> Iterator[str]:
        yield f"# A sale beside pgbench, {SystemClock().now():%Y-%m-%d}"
        yield ""
        yield f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; 3 lines a sale;"
        yield f"{self.seconds} s each, medians of {self.rounds} rounds over the middle number of members;"
        yield "all processes and the load generator on the same machine; fsync and synchronous_commit on."
        yield ""
        yield "| what | members | clients | sales/s | × pgbench | p50 ms | p95 ms | p99 ms | CPU µs/sale: gateway, member, postgres, load |"
        yield "|---|---|---|---|---|---|---|---|---|"
        for row in self.rows:
            used = row["cpu_us_per_sale"]
            cpu = " / ".join(f"{used.get(name, 0):.0f}" for name in ("gateway", "member", "postgres", "load"))
            spread = f" ({row['of_spread']:.2f} × spread)" if "of_spread" in row else ""
            wrong = {status: count for status, count in row["statuses"].items() if status != "201"}
            yield (
                f"| {row['what']}{f' {wrong}' if wrong else ''} | {row['members']:,} | {row['clients']} | {row['rate']:,.0f}{spread} | "
                f"{row['of_pgbench']:.2f} | {row['p50_ms']:.1f} | {row['p95_ms']:.1f} | {row['p99_ms']:.1f} | {cpu} |"
            )
        yield ""
        yield f"pgbench TPC-B (scale 20, 16 clients), once a round: {', '.join(f'{rate:,.0f}' for rate in self.measured['pgbench'])}/s."
        for row in self.rows:
            if len(row["rounds"]) > 1:
                rounds = ", ".join(f"{ratio:.2f}" for ratio in row["rounds"])
                yield f"{row['what']}, {row['clients']} clients, × pgbench of each round: {rounds}."
        memory = self.measured["idle_memory_mib"]
        yield f"Idle: {', '.join(f'{name} {mib:.0f}' for name, mib in memory.items())} = {sum(memory.values()):.0f} MiB (PSS)."
        after = self.measured["memory_after_mib"]
        yield f"After the load: {', '.join(f'{name} {mib:.0f}' for name, mib in after.items())} MiB."
        yield f"From nothing to ready: {self.measured['ready_seconds']:.1f} s."
        if "import" in self.measured:
            report = self.measured["import"]
            yield f"Import of {report['lines']:,} lines: {report['seconds']:.0f} s, {report['lines'] / report['seconds']:,.0f} lines/s."


def _median(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row whose every figure is the median of the rounds'; statuses are summed."""
    joined: dict[str, Any] = dict(rows[0])
    for key, value in rows[0].items():
        if isinstance(value, float):
            joined[key] = median(row[key] for row in rows)
    joined["cpu_us_per_sale"] = {name: median(row["cpu_us_per_sale"][name] for row in rows) for name in rows[0]["cpu_us_per_sale"]}
    joined["statuses"] = dict(sum((Counter(row["statuses"]) for row in rows), Counter()))
    joined["rounds"] = [row["of_pgbench"] for row in rows]
    return joined


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
