"""`make bench-events`: the way of an event from its commit to the reports, beside bare loops over the same servers, in one run.

It reports and asserts nothing but that no effect was lost or doubled. `python -m benchmarks.events --quick` is a short run;
`--only throughput,visible,rebuild,queries,outbox` leaves parts out. The figures go to benchmarks/results/events-<time>, as a table (.md)
and whole (.json). With `BENCH_PROFILES=<folder>` every worker leaves a profile there.
"""

import argparse
import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import uvloop

from benchmarks.events.servers import Servers
from benchmarks.events.throughput import bare_kafka, bare_queue, through_bus
from benchmarks.events.worker import REPOSITORY
from kit.clock import SystemClock

RESULTS = REPOSITORY / "benchmarks" / "results"
PARTITIONS = (1, 4)
PARTS = ("throughput",)
TARGETS = {"of_bare": "≥ 0.5"}


async def main(arguments: Sequence[str]) -> None:
    """Measures what was asked for and writes it down."""
    parser = argparse.ArgumentParser(prog="benchmarks.events", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds: two to three minutes")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--events", type=int, default=0, help="of each measurement of throughput")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts of {','.join(PARTS)}")
    options = parser.parse_args(arguments)
    bench = Bench(
        rounds=options.rounds or (2 if options.quick else 5),
        events=options.events or (20_000 if options.quick else 80_000),
    )
    parts = options.only.split(",")
    with Servers() as servers:
        if "throughput" in parts:
            await bench.throughput(servers)
    bench.write()


class Bench:
    """Collects what was measured, and writes it."""

    def __init__(self, *, rounds: int, events: int) -> None:
        self.rounds = rounds
        self.events = events
        self.found: dict[str, Any] = {"rounds": rounds, "events": events}

    async def throughput(self, servers: Servers) -> None:
        """Rounds of every loop in turn, since a machine's speed drifts; a ratio is of the same round. The first round only warms up."""
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for number in range(self.rounds + 1):
            events = self.events if number else self.events // 4
            for partitions in PARTITIONS:
                name = f"p{partitions}-{number}"
                pairs = {
                    "kafka": (
                        await bare_kafka(servers, name=name, partitions=partitions, events=events),
                        await through_bus(servers, "kafka", name=name, partitions=partitions, events=events),
                    ),
                    "postgres": (
                        await bare_queue(servers, workers=partitions, events=events),
                        await through_bus(servers, "postgres", name=name, partitions=partitions, events=events),
                    ),
                }
                for backend, (bare, ours) in pairs.items():
                    ratio = ours["rate"] / bare["rate"]
                    say(f"{backend}, {partitions} partitions: bare {bare['rate']:,.0f}/s, ours {ours['rate']:,.0f}/s = {ratio:.2f}")
                    if number:
                        rows[f"bare {backend} {partitions}"].append(bare)
                        rows[f"ours {backend} {partitions}"].append({**ours, "of_bare": ratio})
                await servers.settle()
        self.found["throughput"] = rows

    def write(self) -> None:
        """Prints the table and writes it with all figures."""
        text = "\n".join(self._lines()) + "\n"
        print("\n" + text)
        RESULTS.mkdir(exist_ok=True)
        name = f"events-{SystemClock().now():%Y-%m-%dT%H%MZ}"
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps(self.found, indent=1) + "\n")

    def _lines(self) -> Iterator[str]:
        yield f"# From commit to reports, {SystemClock().now():%Y-%m-%d}"
        yield ""
        yield f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; all processes and servers on one machine;"
        yield "PostgreSQL with fsync and synchronous_commit, Kafka with a flush for every append and acks=all."
        if "throughput" in self.found:
            yield from self._throughput_lines(self.found["throughput"])

    def _throughput_lines(self, rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
        yield ""
        yield f"## Events a second: from the commit to the outbox until the effect is committed (target {TARGETS['of_bare']} × bare)"
        yield ""
        yield f"Medians of {self.rounds} rounds in turn, {self.events:,} sales of three lines each; ratios within a round."
        yield "Bare: a plain good loop of two processes that counts in memory. Ours: relay and consumer, a process each; the effect is a"
        yield "count for each of 10,000 keys in PostgreSQL, with the inbox."
        yield ""
        yield "| backend | partitions | bare/s | ours/s | × bare (rounds) | CPU µs an event, bare | CPU µs an event, ours |"
        yield "|---|---|---|---|---|---|---|"
        for name, ours in rows.items():
            kind, backend, partitions = name.split()
            if kind == "ours":
                bare = rows[f"bare {backend} {partitions}"]
                ratios = [row["of_bare"] for row in ours]
                yield (
                    f"| {backend} | {partitions} | {_rate(bare):,.0f} | {_rate(ours):,.0f} | {median(ratios):.2f} "
                    f"({', '.join(f'{ratio:.2f}' for ratio in ratios)}) | {_cpu(bare)} | {_cpu(ours)} |"
                )


def _rate(rows: Sequence[dict[str, Any]]) -> float:
    return float(median(row["rate"] for row in rows))


def _cpu(rows: Sequence[dict[str, Any]]) -> str:
    medians = {name: median(row["cpu_us"][name] for row in rows) for name in rows[0]["cpu_us"]}
    return ", ".join(f"{name} {value:.0f}" for name, value in medians.items() if round(value))


def say(line: str) -> None:
    """Tells the one who waits."""
    print(line, flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
