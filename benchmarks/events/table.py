"""What was measured as a table in Markdown, each figure beside its target."""

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from statistics import median
from typing import Any

Found = Mapping[str, Any]


def lines_of(found: Found, now: datetime) -> Iterator[str]:
    """The lines of the page."""
    yield f"# From the commit to the reports, {now:%Y-%m-%d}"
    yield ""
    yield f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {found['minutes']:.0f} minutes;"
    yield "all processes and servers on one machine. PostgreSQL with fsync and synchronous_commit;"
    yield "Kafka with acks=all and a flush for every append; ClickHouse in process with fsync after every insert."
    for part, lines in (
        ("throughput", _throughput),
        ("steady", _steady),
        ("visible", _visible),
        ("rebuild", _rebuild),
        ("queries", _queries),
    ):
        if part in found:
            yield ""
            yield from lines(found[part], found["size"])


def _throughput(rows: Mapping[str, Sequence[Found]], size: Found) -> Iterator[str]:
    yield "## Events a second from the commit in the outbox until they took effect (target: ≥ 0.5 × bare)"
    yield ""
    yield f"Medians of {size['rounds']} rounds of all loops in turn, {size['events']:,} sales of three lines each; ratios within a round."
    yield "Bare: two processes that count in memory, over Kafka with aiokafka, over PostgreSQL with `SKIP LOCKED` and a worker for each"
    yield "partition. Ours: a relay and a consumer. Count: a row for each of 10,000 keys in PostgreSQL, exactly once by the inbox."
    yield "Facts: reporting's ingest."
    yield ""
    yield "| bus | partitions | loop | events/s | × bare | rounds | CPU µs an event |"
    yield "|---|---|---|---|---|---|---|"
    for name, of_loop in rows.items():
        backend, partitions, kind = name.split()
        rate = median(row["rate"] for row in of_loop)
        ratios = [row["of_bare"] for row in of_loop] if kind != "bare" else []
        ratio = f"{median(ratios):.2f}" if ratios else ""
        rounds = ", ".join(f"{each:.2f}" for each in ratios)
        yield f"| {backend} | {partitions} | {kind} | {rate:,.0f} | {ratio} | {rounds} | {_cpu(of_loop)} |"


def _cpu(rows: Sequence[Found]) -> str:
    medians = {name: median(row["cpu_us"][name] for row in rows) for name in rows[0]["cpu_us"]}
    return ", ".join(f"{name} {value:.0f}" for name, value in medians.items() if round(value))


def _steady(rows: Mapping[str, Found], size: Found) -> Iterator[str]:
    yield "## At an even rate: delay from the commit to the effect, and how large outbox and inbox become"
    yield ""
    yield f"{size['steady_seconds']} s at half of what was carried with 4 partitions. The inbox keeps ids for 5 s here, not for weeks."
    yield "Sizes: rows, dead rows, MiB with all indexes."
    yield ""
    yield "| bus | events/s | delay p50 / p99 / max ms | outbox at most | outbox after | inbox at most | inbox after |"
    yield "|---|---|---|---|---|---|---|"
    for backend, row in rows.items():
        delays = " / ".join(f"{row['delays_seconds'][name] * 1000:.0f}" for name in ("p50", "p99", "max"))
        sizes = row["sizes"]
        tables = " | ".join(_size(sizes[when][table]) for table in ("outbox", "inbox") for when in ("load", "after"))
        yield f"| {backend} | {row['rate']:,.0f} | {delays} | {tables} |"


def _visible(rows: Mapping[str, Found], size: Found) -> Iterator[str]:
    yield "## The whole system: from the sale to `POST /v1/reports/query` at half load (target: p99 < 2 s)"
    yield ""
    yield f"{size['members']:,} members, three lines a sale; a closed loop of {size['closed_seconds']} s, then {size['open_seconds']} s"
    yield "at half of its rate with ten probes a second. A probe counts from before it is sent until the answer with it is there."
    yield "Sizes: rows, dead rows, MiB with all indexes."
    yield ""
    yield "| bus | closed loop sales/s | all visible after | half load sales/s | visible p50 / p99 / max s | probes | sale p50 / p99 ms |"
    yield "|---|---|---|---|---|---|---|"
    for backend, row in rows.items():
        seconds = " / ".join(f"{row['seconds'][name]:.2f}" for name in ("p50", "p99", "max"))
        half, drained = row["half"], row["drain_seconds"]
        yield (
            f"| {backend} | {row['closed']['rate']:,.0f} | {drained:.1f} s | {half['rate']:,.0f} | {seconds} | {row['probes']} | "
            f"{half['p50_ms']:.1f} / {half['p99_ms']:.1f} |"
        )
    yield ""
    yield "| bus | table | before | most under full load | when all is visible | most under half load | after |"
    yield "|---|---|---|---|---|---|---|"
    for backend, row in rows.items():
        sizes = row["sizes"]
        for table in sizes["before"]:
            yield f"| {backend} | {table} | {' | '.join(_size(of[table]) for of in sizes.values())} |"
    yield ""
    for backend, row in rows.items():
        used = ", ".join(f"{name} {value:.0f}" for name, value in row["cpu_us_per_sale"].items() if round(value))
        memory = ", ".join(f"{name} {value:.0f}" for name, value in row["memory_mib"].items() if round(value))
        yield f"{backend}: CPU µs a sale at half load, with the reports that the probes ask for: {used}. Memory after it, MiB: {memory}."


def _size(of: Found) -> str:
    return f"{of['rows']:,}, {of['dead_rows']:,}, {of['bytes'] / 2**20:.1f}"


def _rebuild(rows: Mapping[str, Found], size: Found) -> Iterator[str]:
    yield "## All facts made anew from retained events (target: ≥ 20,000 events/s)"
    yield ""
    yield "| bus | sales | events/s | rounds | CPU µs an event | publishing, events/s |"
    yield "|---|---|---|---|---|---|"
    for backend, row in rows.items():
        rates = [each["rate"] for each in row["rounds"]]
        rounds = ", ".join(f"{rate:,.0f}" for rate in rates)
        yield (f"| {backend} | {size['sales']:,} | {median(rates):,.0f} | {rounds} | {_cpu(row['rounds'])} | {row['publish_rate']:,.0f} |")


def _queries(row: Found, _: Found) -> Iterator[str]:
    yield f"## Queries over {row['lines']:,} lines of {row['sales']:,} sales of a year (target for KPIs: p99 < 500 ms)"
    yield ""
    yield f"One after another, in process; {row['parts_of_lines']} parts of lines. Milliseconds."
    yield ""
    yield "| query | times | p50 | p99 | max |"
    yield "|---|---|---|---|---|"
    for name, took in row["ms"].items():
        yield f"| {name} | {took['times']} | {took['p50']:.0f} | {took['p99']:.0f} | {took['max']:.0f} |"
