"""`make bench-events`: the way of an event from its commit to the reports, beside bare loops over the same servers, in one run.

It reports and asserts nothing but that no effect was lost or doubled. `--quick` is a short run; `--only throughput,steady` leaves parts
out. The figures go to benchmarks/results/events-<time>, as a table (.md) and whole (.json). With `BENCH_PROFILES=<folder>` every worker
leaves a profile there.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.events import reports, visible
from benchmarks.events.servers import Servers
from benchmarks.events.table import lines_of
from benchmarks.events.throughput import bare_kafka, bare_queue, steady, through_bus
from benchmarks.events.worker import REPOSITORY
from benchmarks.system import System
from kit.clock import SystemClock

RESULTS = REPOSITORY / "benchmarks" / "results"
PARTITIONS = (1, 4)
BACKENDS = ("kafka", "postgres")
PARTS = ("throughput", "steady", "rebuild", "queries", "visible")
# Of `make up`, where it is not the bus over PostgreSQL.
KAFKA_OF = {"kafka": os.environ.get("KAFKA") or "local", "postgres": ""}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    events: int
    steady_seconds: int
    sales: int
    rebuilds: int
    lines: int
    times: int
    members: int
    closed_seconds: int
    open_seconds: int


FULL = Size(5, 80_000, 20, 1_000_000, 2, 10_000_000, 100, 10_000, 10, 60)
QUICK = Size(1, 20_000, 5, 50_000, 1, 1_000_000, 20, 2_000, 4, 10)


async def main(arguments: Sequence[str]) -> None:
    """Measures what was asked for and writes it down."""
    parser = argparse.ArgumentParser(prog="benchmarks.events", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of everything, in two to three minutes")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts of {','.join(PARTS)}")
    for name, help_of in {
        "rounds": "of every loop in turn",
        "events": "of each round of a loop",
        "sales": "from which the facts are made anew",
        "lines": "over which reports are asked for",
    }.items():
        parser.add_argument(f"--{name}", type=int, help=help_of)
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    given = {name: value for name, value in vars(options).items() if hasattr(size, name) and value is not None}
    bench = Bench(Size(**(vars(size) | given)))
    parts = options.only.split(",")
    # What was started is stopped then too.
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    began = SystemClock().now()
    with Servers() as servers:
        if "throughput" in parts:
            await bench.throughput(servers)
        if "steady" in parts:
            await bench.steady(servers)
        if "rebuild" in parts:
            await bench.rebuild(servers)
        if "queries" in parts:
            await bench.queries(servers)
    if "visible" in parts:
        await bench.visible()
    bench.found["minutes"] = (SystemClock().now() - began).total_seconds() / 60
    bench.write()


class Bench:
    """Collects what was measured, and writes it."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.found: dict[str, Any] = {"size": vars(size)}

    async def throughput(self, servers: Servers) -> None:
        """Rounds of every loop in turn, since a machine's speed drifts; a ratio is of the same round. A first round only warms up."""
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for number in range(self.size.rounds + 1):
            events = self.size.events if number else self.size.events // 4
            for partitions in PARTITIONS if number else PARTITIONS[:1]:
                name = f"p{partitions}-{number}"
                for backend in BACKENDS:
                    if backend == "kafka":
                        bare = await bare_kafka(servers, name=name, partitions=partitions, events=events)
                    else:
                        bare = await bare_queue(servers, workers=partitions, events=events)
                    found = {"bare": bare}
                    for effect in ("count", "facts"):
                        row = await through_bus(servers, backend, effect, name=name, partitions=partitions, events=events)
                        found[effect] = row | {"of_bare": row["rate"] / bare["rate"]}
                    say(
                        f"{backend}, partitions: {partitions}; bare {bare['rate']:,.0f}/s"
                        + "".join(f", {kind} {row['rate']:,.0f}/s = {row['of_bare']:.2f}" for kind, row in list(found.items())[1:])
                    )
                    for kind, row in found.items() if number else ():
                        rows[f"{backend} {partitions} {kind}"].append(row)
                await servers.settle()
        self.found["throughput"] = rows

    async def steady(self, servers: Servers) -> None:
        """Half of what each backend was seen to carry; without that, little."""
        self.found["steady"] = {}
        for backend in BACKENDS:
            rates = sorted(row["rate"] for row in self.found.get("throughput", {}).get(f"{backend} 4 count", ()))
            rate = int(rates[len(rates) // 2] / 2) if rates else 4_000
            row = await steady(servers, backend, partitions=4, rate=rate, seconds=self.size.steady_seconds)
            delays = row["delays_seconds"]
            say(f"{backend} at {row['rate']:,.0f}/s: in effect after {delays['p50'] * 1000:.0f} ms, p99 {delays['p99'] * 1000:.0f} ms")
            self.found["steady"][backend] = row

    async def rebuild(self, servers: Servers) -> None:
        """From either backend."""
        self.found["rebuild"] = {}
        for backend in BACKENDS:
            row = await reports.measure_rebuild(servers, backend, sales=self.size.sales, rounds=self.size.rebuilds)
            rates = ", ".join(f"{each['rate']:,.0f}" for each in row["rounds"])
            say(f"rebuild from {backend}: {rates} events/s")
            self.found["rebuild"][backend] = row

    async def queries(self, servers: Servers) -> None:
        """Over the engine in process."""
        self.found["queries"] = await reports.measure_queries(servers, lines=self.size.lines, times=self.size.times)
        for name, row in self.found["queries"]["ms"].items():
            say(f"{name}: {row['p50']:.0f} ms, p99 {row['p99']:.0f} ms")

    async def visible(self) -> None:
        """The whole system over either bus."""
        self.found["visible"] = {}
        for backend in BACKENDS:
            with System(KAFKA_OF[backend]) as system:
                row = await visible.measure(
                    system, members=self.size.members, closed_seconds=self.size.closed_seconds, open_seconds=self.size.open_seconds
                )
            seconds = row["seconds"]
            say(
                f"{backend} at {row['half']['rate']:,.0f} of {row['closed']['rate']:,.0f} sales/s: "
                f"visible after {seconds['p50']:.2f} s, p99 {seconds['p99']:.2f} s"
            )
            self.found["visible"][backend] = row

    def write(self) -> None:
        """Prints the table and writes it with all figures."""
        now = SystemClock().now()
        text = "\n".join(lines_of(self.found, now)) + "\n"
        print("\n" + text)
        RESULTS.mkdir(exist_ok=True)
        name = f"events-{now:%Y-%m-%dT%H%MZ}"
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps(self.found, indent=1) + "\n")


def say(line: str) -> None:
    """Tells the one who waits."""
    print(line, flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
