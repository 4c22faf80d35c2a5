"""The service as a process of its own: what it says when it cannot start, and what is there after it was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from msgspec.structs import replace

from kit.bus.consuming import MAX_OPEN_DEAD_LETTERS
from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Bus
from kit.clock import SystemClock
from kit.rpc import call_metadata, create_channel, is_serving
from kit.tokens import TokenMinter
from regulars.reporting.v1 import rebuild_service_pb2 as rebuild_pb
from regulars.reporting.v1 import report_service_pb2 as report_pb
from regulars.reporting.v1.rebuild_service_pb2_grpc import RebuildServiceStub
from regulars.reporting.v1.report_service_pb2_grpc import ReportServiceStub
from reporting.facts.consumers import GROUP
from services.reporting.tests.events import sale
from tests.bus.world import until

SALES = 200
LOST = "there are no facts, though events were taken in before"


@pytest.fixture
def environment(tmp_path: Path, bus_url: str) -> dict[str, str]:
    """The settings of a process, with the key that `minter` signs with."""
    key = Ed25519PrivateKey.generate()
    (tmp_path / "public.pem").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "private.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {
        **os.environ,
        "BUS_URL": bus_url,
        "REPORTING_DATA_DIR": str(tmp_path / "data"),
        "REPORTING_LISTEN": f"unix:{tmp_path}/socket",
        "INTERNAL_TOKEN_PUBLIC_KEY_FILE": str(tmp_path / "public.pem"),
    }


@contextmanager
def process(environment: dict[str, str], *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of the service, killed at the end of the block."""
    with subprocess.Popen([sys.executable, "-m", "reporting", *arguments], env=environment, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def ended(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """The exit code of a process that ends by itself, and the last line that it said."""
    done = subprocess.run([sys.executable, "-m", "reporting", *arguments], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip().rpartition("\n")[2]


def test_settings_that_are_missing_are_named(environment: dict[str, str]) -> None:
    del environment["REPORTING_DATA_DIR"]
    assert ended(environment, "migrate") == (
        2,
        "Set CLICKHOUSE_URL to a server, or REPORTING_DATA_DIR to a folder for the engine in this process.",
    )


def test_facts_that_were_not_migrated_are_not_served(environment: dict[str, str]) -> None:
    code, said = ended(environment, "all", "--no-migrate")
    assert (code, said.partition(":")[0]) == (1, "The database is at no migration")
    code, said = ended(environment, "await-migrated", "--seconds", "0")
    assert (code, said.partition(",")[0]) == (1, "ClickHouse is at no migration")
    assert ended(environment, "migrate")[0] == 0
    assert ended(environment, "await-migrated", "--seconds", "0")[0] == 0


class Client:
    """Calls a process as the gateway does."""

    def __init__(self, channel: grpc.aio.Channel, minter: TokenMinter) -> None:
        self.reports = ReportServiceStub(channel)
        self.rebuilds = RebuildServiceStub(channel)
        self._minter = minter

    def rights(self, role: str = "admin") -> "tuple[tuple[str, str], ...]":
        return tuple(call_metadata(self._minter.mint("tester", (role,), None)))

    async def receipts(self) -> int:
        asked = report_pb.RunQueryRequest(metrics=["receipts"], from_day="2026-11-01", to_day="2026-12-01")
        rows = json.loads((await self.reports.RunQuery(asked, metadata=self.rights())).body)["rows"]
        return int(rows[0][-1]) if rows else 0

    async def start_rebuild(self, role: str = "admin") -> None:
        await self.rebuilds.StartRebuild(rebuild_pb.StartRebuildRequest(), metadata=self.rights(role))

    async def rebuild_state(self) -> str:
        answer = await self.rebuilds.GetRebuild(rebuild_pb.GetRebuildRequest(), metadata=self.rights())
        return str(json.loads(answer.body)["state"])


@asynccontextmanager
async def client_of(environment: dict[str, str], tmp_path: Path) -> AsyncIterator[Client]:
    """Returns when the process serves."""
    async with create_channel(environment["REPORTING_LISTEN"]) as channel:

        async def serves() -> bool:
            return await is_serving(channel)

        await until(serves, "it serves")
        yield Client(channel, TokenMinter((tmp_path / "private.pem").read_bytes()))


async def shows(client: Client, receipts: int) -> None:
    """Returns when the reports have that many."""

    async def has() -> bool:
        return await client.receipts() == receipts

    await until(has, f"{receipts} receipts are shown")


async def test_facts_survive_a_kill_and_another_process_is_kept_out(environment: dict[str, str], tmp_path: Path, bus: Bus) -> None:
    await bus.publish([sale()[1] for _ in range(SALES)])
    with process(environment, "all") as running:
        async with client_of(environment, tmp_path) as client:
            await shows(client, SALES)
            code, said = ended(environment, "migrate")
            assert (code, said) == (
                1,
                f"{tmp_path}/data is open in another reporting process, and only one may: ask that one, or stop it.",
            )
            running.send_signal(signal.SIGKILL)
            running.wait()
    await bus.publish([sale()[1] for _ in range(SALES)])
    with process(environment, "all", "--no-migrate") as running:
        async with client_of(environment, tmp_path) as client:
            await shows(client, 2 * SALES)
            running.terminate()
            assert running.wait() == 0


async def test_facts_that_were_removed_are_missed_and_can_be_made_anew(environment: dict[str, str], tmp_path: Path, bus: Bus) -> None:
    await bus.publish([sale()[1] for _ in range(SALES)])
    with process(environment, "all") as running:
        async with client_of(environment, tmp_path) as client:
            await shows(client, SALES)

            async def committed() -> bool:
                return sum(lag.committed or 0 for lag in await bus.lag("reporting")) == SALES

            await until(committed, "the offsets are noted")
        running.terminate()
        assert LOST not in running.communicate()[1]
    shutil.rmtree(tmp_path / "data")
    with process(environment, "all") as running:
        async with client_of(environment, tmp_path) as client:
            assert await client.receipts() == 0
            await client.start_rebuild()
            await shows(client, SALES)
        running.terminate()
        assert LOST in running.communicate()[1]


async def test_a_kill_during_a_rebuild_leaves_the_facts(environment: dict[str, str], tmp_path: Path, bus: Bus) -> None:
    await bus.publish([sale(day=f"2026-11-{1 + number % 28:02d}")[1] for number in range(SALES)])
    with process(environment, "all") as running:
        async with client_of(environment, tmp_path) as client:
            await shows(client, SALES)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.start_rebuild("till")
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as never:
                await client.rebuild_state()
            assert never.value.code() == grpc.StatusCode.NOT_FOUND
            await client.start_rebuild()
            running.send_signal(signal.SIGKILL)
            running.wait()
    with process(environment, "all") as running:
        async with client_of(environment, tmp_path) as client:
            assert await client.receipts() == SALES

            # It was cut off, or had begun to change places and is finished now.
            async def has_ended() -> bool:
                return await client.rebuild_state() in {"cut_off", "done"}

            await until(has_ended, "the rebuild has ended")
            await client.start_rebuild()

            async def is_done() -> bool:
                assert await client.receipts() == SALES
                return await client.rebuild_state() == "done"

            await until(is_done, "it is rebuilt")


async def test_too_many_dead_letters_stop_the_facts_and_not_the_reports(environment: dict[str, str], tmp_path: Path, bus: Bus) -> None:
    await bus.publish([sale()[1]])
    letters = DeadLetters(bus, GROUP, SystemClock())

    async def open_letters() -> int:
        await letters.refresh()
        return len(letters.open())

    async def are_open() -> bool:
        return await open_letters() == MAX_OPEN_DEAD_LETTERS

    with process(environment, "all") as running:
        async with client_of(environment, tmp_path) as client:
            await shows(client, 1)
            await bus.publish([replace(sale()[1], payload=b"\xff") for _ in range(MAX_OPEN_DEAD_LETTERS + 1)])
            await until(are_open, "as many are open as may be")
            await bus.publish([sale()[1]])
            assert (await client.receipts(), running.poll()) == (1, None)
            for letter in letters.open():
                await letters.discard(letter.event_id, by="tester", reason="made up")
            await shows(client, 2)
            assert await open_letters() == 1
        running.terminate()
        assert "no facts come in until dead letters are replayed or discarded" in running.communicate()[1]
