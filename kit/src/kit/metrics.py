"""The registry of metrics: every name, what it says, its labels, and the values that each label may have. None is made anywhere else.

    SALES.of("recorded").inc()          a labelled one: `of` gives the child of these values, at the cost of one look into a dict
    EVENT_LOOP_LAG.of().observe(0.002)  one without labels
    DB_POOL_SIZE.of().set_function(f)   a figure that is read when somebody asks

A label is bounded where it is declared: a value that it does not know counts as `other`, and a metric that has `most` series already
adds to the one whose labels are all `other`. So no path, code or name that a client sends can make series. No value says who somebody is.

A process exports the metrics of its part and no others (`exported`): a gauge that stands at 0 where nothing can move it would lie.
docs/signals.md is written from here.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Generic, TypeAlias, TypeVar

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from kit.money import CURRENCIES

# When a counter began is a series for each of it, and says nothing that `process_start_time_seconds` does not.
disable_created_metrics()  # type: ignore[no-untyped-call]  # as the library ships it

OTHER = "other"
PREFIX = "regulars_"

GATEWAY, MEMBER, RELAY = "gateway-serve", "member-serve", "member-relay"
REPORTING, CONSUMER = "reporting-serve", "reporting-consume"
BACKUP = "backup-wal"
SERVING = (GATEWAY, MEMBER, RELAY, REPORTING, CONSUMER)
PARTS = (*SERVING, BACKUP)

_WORD = re.compile(r"[A-Za-z0-9_]{1,60}")
# A value that is declared comes from code; this only keeps quotes and blanks out of the text that is exported.
_NAME = re.compile(r"[A-Za-z0-9_./{}:-]{1,120}")


class Label:
    """A label and the values that it may have; every other value is `other`.

    `values`: these, known here. Otherwise the names that code declares at its start with `declare`, at most `limit`; or, with `words`,
    the first `limit` words that are used: codes that stand in code, too many to be listed and too few to matter.
    """

    def __init__(self, name: str, meaning: str, values: Iterable[str] = (), *, limit: int = 0, words: bool = False) -> None:
        self.name = name
        self.meaning = meaning
        self.listed = tuple(values)
        self.limit = limit or len(self.listed)
        self.words = words
        self._known = set(self.listed)

    def declare(self, names: Iterable[str]) -> None:
        """Makes names known. Beyond the limit they are `other`."""
        for name in names:
            if name not in self._known and len(self._known) < self.limit and _NAME.fullmatch(name):
                self._known.add(name)

    def value(self, given: object) -> str:
        """What is exported for a value."""
        text = str(given)
        if self.words and text not in self._known and len(self._known) < self.limit and _WORD.fullmatch(text):
            self._known.add(text)
        return text if text in self._known else OTHER

    def forget(self) -> None:
        """Knows again only what is listed. For tests."""
        self._known = set(self.listed)


class _Histogram(prometheus_client.Histogram):
    """A histogram that finds the bucket by halving, and takes many values at once."""

    def observe_many(self, values: Sequence[float]) -> None:
        """As `observe` of each."""
        bounds, counts = self._upper_bounds, [0] * len(self._upper_bounds)
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(sum(values))

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Counts one value."""
        if exemplar is not None:
            super().observe(value, exemplar)
            return
        self._buckets[bisect_left(self._upper_bounds, value)].inc(1)
        self._sum.inc(value)


Child = TypeVar("Child", bound=MetricWrapperBase)


class Metric(Generic[Child]):
    """One metric. `parts`: the processes that export it; `most`: how many series of labels it may have in one process."""

    def __init__(self, parent: Child, meaning: str, labels: tuple[Label, ...], parts: tuple[str, ...], most: int) -> None:
        self.meaning = meaning
        self.labels = labels
        self.parts = parts
        self.most = most
        self._parent = parent
        self._children: dict[tuple[object, ...], Child] = {}
        self._series: set[tuple[str, ...]] = set()
        if not labels:
            self._children[()] = parent

    @property
    def name(self) -> str:
        """As it is queried, with `_total` of a counter."""
        name = next(iter(self._parent.describe())).name
        return f"{name}_total" if self.kind == "counter" else name

    @property
    def kind(self) -> str:
        """`counter`, `gauge` or `histogram`."""
        return next(iter(self._parent.describe())).type

    @property
    def collector(self) -> Collector:
        """What a registry collects."""
        return self._parent

    @property
    def buckets(self) -> tuple[float, ...]:
        """The upper bounds of a histogram's buckets, without the last; none of another kind."""
        return tuple(self._parent._upper_bounds[:-1]) if isinstance(self._parent, _Histogram) else ()  # noqa: SLF001  # no other way

    def of(self, *values: object) -> Child:
        """The series of these label values, in the order of the labels."""
        found = self._children.get(values)
        return found if found is not None else self._child(values)

    def _child(self, values: tuple[object, ...]) -> Child:
        texts = tuple(label.value(given) for label, given in zip(self.labels, values, strict=True))
        if texts not in self._series and len(self._series) >= self.most - 1:
            texts = (OTHER,) * len(texts)
        child: Child = self._parent.labels(*texts)
        self._series.add(texts)
        if OTHER not in texts:
            # Others are looked up anew: a name may yet be declared, and what clients send must not fill this.
            self._children[values] = child
        return child

    def start(self, *choices: Iterable[object]) -> None:
        """Makes the series of all these values, so that the first of each is seen as an increase from 0."""
        for values in product(*choices):
            self.of(*values)

    def remove(self, *values: object) -> None:
        """Has no series of these label values any more."""
        if self._children.pop(values, None) is not None:
            texts = tuple(label.value(given) for label, given in zip(self.labels, values, strict=True))
            self._series.discard(texts)
            self._parent.remove(*texts)

    def forget(self) -> None:
        """Has no series any more. For tests."""
        if self.labels:
            self._children.clear()
            self._series.clear()
            self._parent.clear()


AnyMetric: TypeAlias = "Metric[prometheus_client.Counter] | Metric[prometheus_client.Gauge] | Metric[_Histogram]"

_all: list[AnyMetric] = []


def _counter(
    name: str, meaning: str, *labels: Label, parts: tuple[str, ...] = SERVING, most: int = 100
) -> Metric[prometheus_client.Counter]:
    parent = prometheus_client.Counter(PREFIX + name, meaning, [label.name for label in labels], registry=None)
    metric = Metric(parent, meaning, labels, parts, most)
    _all.append(metric)
    return metric


def _gauge(name: str, meaning: str, *labels: Label, parts: tuple[str, ...] = SERVING, most: int = 100) -> Metric[prometheus_client.Gauge]:
    parent = prometheus_client.Gauge(PREFIX + name, meaning, [label.name for label in labels], registry=None)
    metric = Metric(parent, meaning, labels, parts, most)
    _all.append(metric)
    return metric


def _histogram(
    name: str, meaning: str, *labels: Label, buckets: Sequence[float], parts: tuple[str, ...] = SERVING, most: int = 100
) -> Metric[_Histogram]:
    parent = _Histogram(PREFIX + name, meaning, [label.name for label in labels], buckets=buckets, registry=None)
    metric = Metric(parent, meaning, labels, parts, most)
    _all.append(metric)
    return metric


def all_metrics() -> Sequence[AnyMetric]:
    """Every metric of the system, in the order of this file."""
    return tuple(_all)


# Labels

SERVICE = Label("service", "the service", ("gateway", "member", "reporting", "backup"))
PART = Label("part", "the part of it; `all`: a process that is every part", ("serve", "relay", "consume", "wal", "all"))
VERSION = Label("version", "the release", limit=1, words=False)
ROUTE = Label("route", "the path's template, such as `/v1/sales/{sale_id}`, from the gateway's own routes", limit=100)
METHOD = Label("method", "the HTTP method", ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))
STATUS = Label(
    "status",
    "the HTTP status; 499: the client went away before its request was whole",
    map(str, (200, 201, 202, 204, 206, 304, 400, 401, 403, 404, 405, 406, 409, 413, 415, 416, 422, 429, 499, 500, 502, 503, 504)),
)
RPC = Label("rpc", "service and method, such as `regulars.member.v1.WalletService/ExecuteCommands`, from the stubs in use", limit=80)
CODE = Label(
    "code",
    "the gRPC status by its name",
    (
        "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
        "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
        "UNAVAILABLE", "DATA_LOSS",
    ),
)  # fmt: skip
LANE = Label("kind", "tills' writes one by one, or an import's whole groups", ("till", "import"))
GROUP = Label("group", "the group of consumers", limit=8)
TOPIC = Label("topic", "the topic, from what the group consumes", limit=40)
DONE = Label("outcome", "what became of a message", ("done", "retried", "dead_letter"))
CHECK = Label("check", "wallets against their entries, or reports against the ledger", ("wallets", "reports"))
STATEMENT = Label("kind", "what ClickHouse was asked", ("query", "insert"))
TABLE = Label("table", "the table of facts", limit=20)
DISK = Label("disk", "the disk, by ClickHouse's name", limit=8)
SALE_OUTCOME = Label("outcome", "what the till was told", ("recorded", "replayed", "refused", "failed"))
CURRENCY = Label("currency", "ISO 4217", sorted(CURRENCIES))
MOVE = Label(
    "kind",
    "the kind of the ledger's entries",
    ("earn", "mature", "spend", "return", "take_back", "forgive", "expire", "adjust", "debt_payment"),
)
REFUSAL = Label("code", "the code of the problem document", limit=150, words=True)

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WAIT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LARGE_SIZE = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000)
_DELAY = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1_800, 7_200, 86_400)

# Every process

BUILD_INFO = _gauge("build_info", "1, under what runs here.", SERVICE, PART, VERSION, parts=PARTS, most=2)
EVENT_LOOP_LAG = _histogram(
    "event_loop_lag_seconds",
    "How much later than asked the event loop came round, tried every half second: it waits for whatever holds the loop up.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    parts=PARTS,
)

# The public API

HTTP_REQUESTS = _counter(
    "http_requests_total", "Requests answered, by what they were answered with.", ROUTE, METHOD, STATUS, parts=(GATEWAY,), most=600
)
HTTP_DURATION = _histogram(
    "http_request_duration_seconds",
    "From the head of a request to the end of its answer; of a stream to its beginning.",
    ROUTE, METHOD, buckets=_LATENCY, parts=(GATEWAY,), most=150,
)  # fmt: skip

# Calls between services

_SERVERS, _CLIENTS = (MEMBER, REPORTING), (GATEWAY, REPORTING)
RPC_SERVER_CALLS = _counter("rpc_server_calls_total", "Calls answered.", RPC, CODE, parts=_SERVERS, most=250)
RPC_SERVER_DURATION = _histogram(
    "rpc_server_duration_seconds", "How long an answer took to make.", RPC, buckets=_LATENCY, parts=_SERVERS, most=81
)
RPC_CLIENT_CALLS = _counter(
    "rpc_client_calls_total", "Calls made of other services, by how they ended; each attempt is one.", RPC, CODE, parts=_CLIENTS, most=250
)
RPC_CLIENT_DURATION = _histogram(
    "rpc_client_duration_seconds", "How long a call of another service took.", RPC, buckets=_LATENCY, parts=_CLIENTS, most=81
)

# PostgreSQL

_POOLS = (GATEWAY, MEMBER)
DB_POOL_SIZE = _gauge("db_pool_size", "Connections to PostgreSQL that this process may have.", parts=_POOLS)
DB_POOL_IN_USE = _gauge("db_pool_in_use", "Those that are being used.", parts=_POOLS)
DB_POOL_WAIT = _histogram(
    "db_pool_wait_seconds", "How long work waited for a connection, and for it to be made if need be.", buckets=_WAIT, parts=_POOLS
)
DB_POOL_TIMEOUTS = _counter("db_pool_timeouts_total", "How often it waited in vain.", parts=_POOLS)

# The gateway's lanes

LANE_GROUP_SIZE = _histogram("lane_group_size", "Commands sent to member in one group.", LANE, buckets=_SIZE, parts=(GATEWAY,))
LANE_WAIT = _histogram(
    "lane_wait_seconds", "How long the oldest command of a group waited until the group was sent.", LANE, buckets=_WAIT, parts=(GATEWAY,)
)
LANE_QUEUED = _gauge("lane_queued", "Commands (till) or groups (import) that wait.", LANE, parts=(GATEWAY,))
LANE_REFUSED = _counter("lane_refused_total", "Commands (till) or groups (import) refused because too many wait.", LANE, parts=(GATEWAY,))

# The batch writer

WRITER_GROUP_SIZE = _histogram("writer_group_size", "Commands decided in one transaction.", buckets=_SIZE, parts=(MEMBER,))
WRITER_DURATION = _histogram(
    "writer_duration_seconds", "From a group's arrival to its commit, with the attempts that failed.", buckets=_LATENCY, parts=(MEMBER,)
)
WRITER_RETRIES = _counter("writer_retries_total", "Groups tried again after a fault of the moment.", parts=(MEMBER,))
WRITER_SPLITS = _counter("writer_splits_total", "Groups halved to find the command at fault.", parts=(MEMBER,))

# From the outbox to the bus

OUTBOX_OLDEST_AGE = _gauge(
    "outbox_oldest_age_seconds", "How long the oldest event has waited to be published, as the leading relay sees it.", parts=(RELAY,)
)
RELAY_PUBLISHED = _counter("relay_published_total", "Events that the bus took.", parts=(RELAY,))
RELAY_LEADING = _gauge("relay_leading", "1: this relay is the one that publishes.", parts=(RELAY,))
RELAY_BUS_AWAY = _gauge("relay_bus_away", "1: it has events and cannot publish them.", parts=(RELAY,))

# From the bus to its effect

CONSUMER_LAG = _gauge("consumer_lag_messages", "Messages that the group has yet to do.", GROUP, TOPIC, parts=(CONSUMER,))
CONSUMER_MESSAGES = _counter(
    "consumer_messages_total",
    "Messages by what became of them; `retried` counts each attempt that had no effect.",
    GROUP, TOPIC, DONE, parts=(CONSUMER,),
)  # fmt: skip
CONSUMER_BATCH_SIZE = _histogram("consumer_batch_size", "Messages handled at once.", GROUP, buckets=_LARGE_SIZE, parts=(CONSUMER,), most=9)
CONSUMER_BATCH_DURATION = _histogram(
    "consumer_batch_duration_seconds", "How long a batch took.", GROUP, buckets=_LATENCY, parts=(CONSUMER,), most=9
)
CONSUMER_DELAY = _histogram(
    "consumer_delay_seconds", "From the time of an event to its effect.", GROUP, buckets=_DELAY, parts=(CONSUMER,), most=9
)
DEAD_LETTERS_OPEN = _gauge("dead_letters_open", "Dead letters that wait for an operator.", GROUP, parts=(CONSUMER,), most=9)
CONSUMER_BUS_AWAY = _gauge("consumer_bus_away", "1: the bus does not answer the group.", GROUP, parts=(CONSUMER,), most=9)

# Proof of the ledgers

_CHECKERS = (RELAY, REPORTING)
LEDGER_MISMATCHES = _gauge("ledger_mismatches", "Differences that the last whole check found.", CHECK, parts=_CHECKERS)
LEDGER_CHECKED = _gauge("ledger_checked_timestamp_seconds", "When the last whole check ended, as Unix time.", CHECK, parts=_CHECKERS)

# Backups

KEPT = Label("kind", "what is backed up", ("postgres", "clickhouse"))
BACKUP_LAST_SUCCESS = _gauge(
    "backup_last_success_timestamp_seconds", "When the newest whole backup was taken, as Unix time.", KEPT, parts=(BACKUP,)
)
BACKUP_LAST_RPO = _gauge(
    "backup_last_rpo_seconds",
    "How old what a restore of the newest base backup would not bring back may be: what would be lost now. WAL after a gap, or "
    "of after a failover, does not count before the next base backup; +Inf: no base backup is known.",
    KEPT,
    parts=(BACKUP,),
)
BACKUP_LAST_VERIFIED = _gauge(
    "backup_last_verified_timestamp_seconds", "When `regulars backup verify` last read everything and found it good.", KEPT, parts=(BACKUP,)
)

# ClickHouse

_FACTS = (REPORTING, CONSUMER)
CLICKHOUSE_DURATION = _histogram(
    "clickhouse_duration_seconds", "How long ClickHouse took, with the wait for a connection.", STATEMENT, buckets=_LATENCY, parts=_FACTS
)
CLICKHOUSE_ERRORS = _counter("clickhouse_errors_total", "What it did not answer, or answered with an error.", STATEMENT, parts=_FACTS)
CLICKHOUSE_DISK_FREE = _gauge(
    "clickhouse_disk_free_bytes", "Room that is left on a disk that holds facts.", DISK, parts=(CONSUMER,), most=9
)
CLICKHOUSE_DISK_TOTAL = _gauge("clickhouse_disk_total_bytes", "Its size.", DISK, parts=(CONSUMER,), most=9)
FACTS_INSERTED = _counter("facts_inserted_total", "Rows of facts inserted; one that comes again replaces itself.", TABLE, parts=_FACTS)

# Live figures

KPI_STREAMS = _gauge("kpi_streams", "Clients that watch live figures.", parts=(GATEWAY,))

# Business: counted once the transaction is committed, and never for a replay. The ledger has the exact figures: what was committed while
# the connection was lost is counted as replayed when the till asks again.

SALES = _counter("sales_total", "Sales by what the till was told.", SALE_OUTCOME, parts=(MEMBER,))
SALES_NET = _counter("sales_net_minor_total", "Net amount of the sales recorded, in minor units.", CURRENCY, parts=(MEMBER,), most=170)
REVERSALS = _counter("reversals_total", "Reversals of sales by what the till was told.", SALE_OUTCOME, parts=(MEMBER,))
REFUNDS = _counter("refunds_minor_total", "Amount refunded by reversals and returns, in minor units.", CURRENCY, parts=(MEMBER,), most=170)
POINTS_MOVED = _counter("points_moved_total", "Points that moved, whichever way.", MOVE, parts=(MEMBER,))
MEMBERS_SIGNED_UP = _counter("members_signed_up_total", "Members signed up.", parts=(MEMBER,))
REFUSALS = _counter("refusals_total", "Refusals by the service that made them.", REFUSAL, parts=(GATEWAY, MEMBER, REPORTING), most=152)


@dataclass(slots=True)
class Live:
    """A gauge that is the sum of what several objects say when it is read: pools, lanes, relays of one process."""

    _sources: list[Callable[[], float]] = field(default_factory=list)

    def read(self) -> float:
        """The sum."""
        return sum(source() for source in self._sources)

    def add(self, source: Callable[[], float]) -> Callable[[], None]:
        """Adds one more; what is returned takes it away."""
        self._sources.append(source)
        return lambda: self._sources.remove(source)


_live: dict[tuple[str, tuple[object, ...]], Live] = {}


def live(gauge: Metric[prometheus_client.Gauge], *values: object) -> Live:
    """What a gauge is the sum of, for more to be added to it."""
    sources = _live.setdefault((gauge.name, values), Live())
    gauge.of(*values).set_function(sources.read)
    return sources


def exported(service: str, part: str, version: str) -> CollectorRegistry:
    """What this process exports: the metrics of its part (`all`: of every part of the service) and the process's own."""
    parts = {name for name in PARTS if name.startswith(f"{service}-")} if part == "all" else {f"{service}-{part}"}
    registry = CollectorRegistry(auto_describe=True)
    VERSION.declare([version])
    BUILD_INFO.of(service, part, version).set(1)
    for metric in _all:
        if parts.isdisjoint(metric.parts):
            continue
        if all(label.listed for label in metric.labels) and metric not in _UNTIL_KNOWN:
            metric.start(*(label.listed for label in metric.labels))
        registry.register(metric.collector)
    ProcessCollector(registry=registry)
    return registry


# No series until there is something to say: a currency nobody uses, a check that was not made yet.
_UNTIL_KNOWN: tuple[object, ...] = (
    *(BUILD_INFO, SALES_NET, REFUNDS, LEDGER_MISMATCHES, LEDGER_CHECKED),
    *(BACKUP_LAST_SUCCESS, BACKUP_LAST_RPO, BACKUP_LAST_VERIFIED),
)
