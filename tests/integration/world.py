"""A system whose way to its broker leads through a relay, whose facts are on a disk that can be full, and who buys in it."""

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import Bus, BusUnavailable, TopicPartition
from kit.settings import load
from regulars_cli.up.kafka import HOST, LocalKafka, free_ports
from tests.integration.api import Api, Json
from tests.integration.cut import Address, Relay
from tests.integration.facts import Facts, Ledger, Published, kept_facts
from tests.integration.load import Client, Line, Shop, open_members, together
from tests.integration.shop import Till
from tests.integration.stored import check_balances, check_what_is_stored
from tests.integration.system import System, running_system, wait_until

BACKENDS = ("postgres", "kafka")
CLIENTS = 16
MEMBERS = 24
PARTITIONS = 4
GROUP = "reporting"
# How long anything may take that must come to pass.
PATIENCE_SECONDS = 90
DISK_MB = 192
# What the clients need to meet one another, and the faults something to interrupt.
A_WHILE = 40


class Disk:
    """Where `folder` keeps its files, which can be made to take no more.

    For root a small disk of its own, filled to the last byte; for others, who may not mount one, a folder that is made read-only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / "filler"
        self._is_mounted = False
        self.was_full = False

    def mount(self) -> None:
        """Before anything is in it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=0755", "none", str(self._folder))
        self._is_mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0

    def unmount(self) -> None:
        """Forgets everything that is in it."""
        if self._is_mounted:
            command = ("umount", "--lazy", str(self._folder))
            subprocess.run(command, check=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Within the block nothing can be written."""
        self.was_full = True
        if not self._is_mounted:
            assert os.geteuid() != 0, "root can write into any folder, so a disk must be mounted"
            yield from self._read_only()
            return
        try:
            with self._filler.open("wb", buffering=0) as filler:
                for piece in (1 << 20, 1 << 12, 1):
                    with suppress(OSError):
                        while filler.write(b"-" * piece) == piece:
                            pass
            yield
        finally:
            self._filler.unlink()

    def _read_only(self) -> Iterator[None]:
        folders = [self._folder, *(path for path in self._folder.rglob("*") if path.is_dir())]
        try:
            for folder in folders:
                folder.chmod(0o555)
            yield
        finally:
            for folder in folders:
                folder.chmod(0o755)


@dataclass(frozen=True)
class Checked:
    """What was found to be as it should: the facts, and how many messages came twice."""

    facts: Facts
    repeated: int


class World:
    """A running system and everything around it that the fault tests lay hands on."""

    def __init__(self, backend: str, system: System, relay: Relay, kafka: LocalKafka | None, disk: Disk) -> None:
        self.backend = backend
        self.system = system
        self.relay = relay
        self.kafka = kafka
        self.disk = disk
        self._loads = 0
        # A child ends with the thread that started it: one that stays, and does one thing at a time.
        self._hands = ThreadPoolExecutor(1)
        self._begin()

    def _begin(self) -> None:
        environment = psutil.Process(self.system.pid("member")).environ()
        self._member_database = environment["MEMBER_DATABASE_URL"]
        self._bus_settings = load(BusSettings, environment)
        self.admin = self.system.api(self.system.key("admin"))

    def open_shop(self) -> None:
        """Before anything is sold."""
        self.shop = Shop(Till(self.admin, self.system.store_id, self.system.till_id), open_members(self.admin, MEMBERS))

    def ensure_running(self) -> None:
        """Starts the system again if a test stopped it."""
        if not self.system.is_running:
            self.system.start()
            self._begin()
            self.shop.till.api = self.admin

    def processes(self) -> dict[str, Callable[[], None]]:
        """How to kill each process, by name; all but Kafka are started again by the supervisor."""
        kills: dict[str, Callable[[], None]] = {
            name: partial(self.system.kill, name) for name in ("gateway", "member", "reporting", "postgres")
        }
        return kills | ({"kafka": partial(self._begin_again, self.kafka.kill)} if self.kafka is not None else {})

    def brokers(self) -> dict[str, Callable[[], None]]:
        """How to restart, in good order, what keeps data for the others."""
        restarts: dict[str, Callable[[], None]] = {"postgres": partial(self.system.kill, "postgres", signal.SIGINT)}
        return restarts | ({"kafka": partial(self._begin_again, self.kafka.stop)} if self.kafka is not None else {})

    def _begin_again(self, end: Callable[[], None]) -> None:
        assert self.kafka is not None
        start = self.kafka.start

        def begin_again() -> None:
            end()
            start()

        self._hands.submit(begin_again).result()

    @asynccontextmanager
    async def load(self, seed: int) -> AsyncIterator[Line]:
        """Clients write for as long as the block runs; at its end everything that they began is decided."""
        self._loads += 1
        line = Line(self.system.url, self.system.key("admin"))
        ending = asyncio.Event()
        clients = [Client(number, self.shop, line, seed * 1000 + self._loads) for number in range(CLIENTS)]
        watching = asyncio.create_task(line.watch())
        writing = asyncio.create_task(together(client.run(ending.is_set) for client in clients))
        try:
            await self.something_is_written()
            yield line
            ending.set()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            line.over.set()
            await watching

    async def something_is_written(self, more: int = A_WHILE) -> None:
        """Returns when the clients have got answers to so many more writes: sales are recorded now."""
        enough = len(self.shop.decided) + more
        await self.until(lambda: len(self.shop.decided) >= enough, "writes are decided")

    async def is_whole_again(self) -> None:
        """Returns when every process answers."""
        await asyncio.to_thread(wait_until, self.system.is_whole, "everything is back", PATIENCE_SECONDS)

    async def events_wait(self, count: int) -> None:
        """Returns when so many events wait in the outbox, since they cannot be published."""

        async def enough() -> bool:
            return (await self.waiting() or 0) >= count

        await self.until(enough, f"{count} events wait")

    async def facts_wait(self, count: int) -> None:
        """Returns when so many messages wait on the bus, since they cannot be done."""

        async def enough() -> bool:
            return (await self.lag() or 0) >= count

        await self.until(enough, f"{count} messages wait")

    async def waiting(self) -> int | None:
        """How many events are in the outbox; None when the database does not answer."""
        try:
            connection = await asyncpg.connect(self._member_database, timeout=5)
        except (OSError, asyncpg.PostgresError):
            return None
        try:
            count: int = await connection.fetchval("SELECT count(*) FROM outbox")
        except (OSError, asyncpg.PostgresError):
            return None
        finally:
            connection.terminate()
        return count

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """The bus as services see it, through the relay."""
        async with connect(self._bus_settings, client_name="tests") as bus:
            yield bus

    async def lag(self) -> int | None:
        """How many messages the group has yet to do; None when the bus does not answer."""
        try:
            async with self.bus() as bus:
                return await lag_of(bus)
        except BusUnavailable:
            return None

    async def is_settled(self) -> None:
        """Returns when everything that was written is on the bus and was done."""

        async def settled() -> bool:
            return await self.waiting() == 0 and await self.lag() == 0

        await self.until(settled, "every event is handled")

    async def until(self, condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Returns as soon as the condition holds; fails, naming `what` was waited for, when that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        never = asyncio.Event()
        while True:
            holds = condition()
            if not isinstance(holds, bool):
                holds = await holds
            if holds:
                return
            assert loop.time() < deadline, f"{what}: not within {PATIENCE_SECONDS} seconds; {self.last_words()}"
            with suppress(TimeoutError):
                await asyncio.wait_for(never.wait(), 0.05)

    async def check(self) -> Checked:
        """Fails unless every write is exactly once in the lists, on the bus, and in the reports, and nothing else is."""
        await self.is_settled()
        ledger = await asyncio.to_thread(Ledger.read, self.admin, self.shop)
        check_what_is_stored(self.shop, list(ledger.sales))
        assert {back["operation_id"] for back in ledger.returns} == set(self.shop.returns)
        await asyncio.to_thread(check_balances, self.shop, self.admin)
        async with self.bus() as bus:
            published = await Published.read(bus)
            topics = await bus.topics()
        published.check_order(PARTITIONS)
        expected = ledger.facts()
        expected.check_same(published.facts(), "the bus")
        dead = [state for spec, states in topics.items() if spec.name.startswith("dead-letters.") for state in states]
        assert dead
        assert [state.next_offset for state in dead if state.next_offset] == [], "no event was put aside"
        await asyncio.to_thread(check_reports, self.admin, published, disk_was_full=self.disk.was_full)
        check_logs(self.system)
        return Checked(expected, published.repeated)

    def check_kept(self, expected: Facts) -> None:
        """Stops the system; fails unless `reporting` keeps exactly these facts."""
        self.system.stop()
        expected.check_same(kept_facts(self.system.var / "clickhouse"), "reporting")
        check_logs(self.system)

    def last_words(self) -> str:
        """The end of every log, for a failure."""
        return "\n".join(f"{name}: {line[:500]}" for name, text in self.system.logs().items() for line in text.splitlines()[-5:])


@contextmanager
def running_world(backend: str) -> Iterator[World]:
    """A world of its own, in which nothing was sold yet."""
    with ExitStack() as at_end:
        folder = Path(at_end.enter_context(tempfile.TemporaryDirectory(prefix="regulars-relay-", ignore_cleanup_errors=True)))
        started: list[System] = []
        disks: list[Disk] = []

        def prepare(system: System) -> None:
            started.append(system)
            disk = Disk(system.var / "clickhouse")
            disk.mount()
            at_end.callback(disk.unmount)
            disks.append(disk)

        kafka: LocalKafka | None = None
        if backend == "kafka":
            port = free_ports(1)[0]
            kafka = LocalKafka(folder / "kafka", settings={"advertised.listeners": f"PLAINTEXT://{HOST}:{port}"})
            at_end.enter_context(kafka)
            address: Address = (HOST, port)
            broker = (HOST, int(kafka.bootstrap.rpartition(":")[2]))
            relay = Relay(address, lambda: broker)
            bus: dict[str, Any] = {"kafka": f"{HOST}:{port}"}
        else:
            relay = Relay(folder / ".s.PGSQL.5432", lambda: started[0].postgres_socket)
            bus = {"bus_url": f"postgresql://postgres@/bus?host={folder}"}
        at_end.enter_context(relay)
        system = at_end.enter_context(running_system(**bus, prepare=prepare))
        world = World(backend, system, relay, kafka, disks[0])
        world.open_shop()
        yield world
        # Whoever stops is not kept waiting by a fault.
        relay.mend()


async def lag_of(bus: Bus) -> int:
    """How many messages the group has yet to do, also of partitions that it never began."""
    begun = {lag.source: lag.messages for lag in await bus.lag(GROUP)}
    kept: dict[TopicPartition, int] = {
        state.source: state.next_offset - state.first_offset for states in (await bus.topics()).values() for state in states
    }
    return sum(begun.get(source, messages) for source, messages in kept.items())


def check_logs(system: System) -> None:
    """Fails if something happened to a service that nobody foresaw."""
    errors = system.errors_logged()
    assert not errors, "\n".join([f"{len(errors)} errors were logged:", *errors[:3]])


def make_facts_anew(admin: Api) -> None:
    """Rebuilds them from the ledger, and returns when that is done."""
    admin.post("/v1/reports:rebuild", {"source": "ledger"}, 202)

    def has_ended() -> bool:
        return bool(admin.get("/v1/reports/rebuilds/current")["state"] not in {"running", "waiting", "swapping"})

    wait_until(has_ended, "the facts are made anew", 120)
    assert admin.get("/v1/reports/rebuilds/current")["state"] == "done"


def check_reports(admin: Api, published: Published, *, disk_was_full: bool) -> None:
    """Fails unless the reports' figures of every day are the sums of what was published, and agree with the ledger's own.

    A merge of ClickHouse that meets a full disk in its last write may leave what cannot be read. It is told of then, and made anew as its
    runbook says.
    """
    figures = published.daily_figures()
    names = ["gross_sales_minor", "net_sales_minor", "returns_minor", "receipts", "items"]
    first, last = min(figures), max(figures)
    query: Json = {"metrics": names, "dimensions": ["day"], "from": first, "to": str(date.fromisoformat(last) + timedelta(days=1))}
    answer = admin.ask("POST", "/v1/reports/query", query | {"limit": 5000})
    if disk_was_full and answer.status_code == 503 and answer.json()["code"] == "facts_damaged":
        make_facts_anew(admin)
        answer = admin.ask("POST", "/v1/reports/query", query | {"limit": 5000})
    assert answer.status_code == 200, answer.text
    report = answer.json()
    found = {row[0]: [*row[1:-1], Decimal(row[-1])] for row in report["rows"]}
    expected = {day: [sums[name] for name in names] for day, sums in figures.items()}
    assert found == expected, f"the reports say {found}, and not {expected}"

    def agree() -> bool:
        answer = admin.ask("POST", "/v1/reports:reconcile", {})
        if answer.status_code == 503:
            if disk_was_full and answer.json()["code"] == "facts_damaged":
                make_facts_anew(admin)
            # Reporting finds the member service again a moment after everybody else has.
            return False
        assert answer.status_code == 200, answer.text
        assert not answer.json()["differences"], f"the reports differ from the ledger: {answer.text}"
        return True

    wait_until(agree, "the ledger can be read", 60)
