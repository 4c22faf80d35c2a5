"""The system under measurement: started as `make up` starts it, in a folder of its own, and asked for what it uses."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import asyncpg
import psutil

from kit.clock import SystemClock
from kit.ids import uuid7

REPOSITORY = Path(__file__).resolve().parents[1]
START_SECONDS = 300


class System:
    """A running Regulars over a new embedded PostgreSQL; `kafka` is what `make up KAFKA=…` takes, empty for the bus over PostgreSQL."""

    def __init__(self, kafka: str = "") -> None:
        self.kafka = kafka

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="regulars-bench-"))
        self._folder.chmod(0o711)
        self.var = self._folder / "var"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        began = time.monotonic()
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("regulars")),
                "up",
                "--port",
                str(self.port),
                "--var",
                str(self.var),
                *(["--kafka", self.kafka] if self.kafka else []),
            ],
            stdout=(self._folder / "up.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "KAFKA": ""},
        )
        while not (self.var / "up.json").exists():
            if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                self.stop()
                raise RuntimeError((self._folder / "up.log").read_text())
            time.sleep(0.05)
        self.start_seconds = time.monotonic() - began
        self.up: dict[str, Any] = json.loads((self.var / "up.json").read_text())
        self._server = next(p for p in self._children() if p.name() == "postgres" and p.parent() == psutil.Process(self._process.pid))
        command = self._server.cmdline()
        self.binaries = Path(command[0]).parent
        self.socket_dir = command[command.index("-k") + 1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        """Ends it, and leaves what it wrote until the end of the block."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def url(self, database: str) -> str:
        """A database of the server under measurement."""
        return f"postgresql://postgres@/{database}?host={quote(self.socket_dir, safe='')}"

    def processes(self) -> list[psutil.Process]:
        """Whatever runs of it."""
        return self._children()

    @property
    def server_pid(self) -> int:
        """The PostgreSQL server's own process."""
        return self._server.pid

    def name_of(self, process: psutil.Process) -> str:
        """gateway, member, reporting, kafka.Kafka or postgres."""
        return _name(process)

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU used so far, by process: gateway, member, postgres."""
        used: dict[str, float] = defaultdict(float)
        for process in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                # What ended connections used is the server's, as the time of its waited-for children.
                ended = times.children_user + times.children_system if process == self._server else 0.0
                used[_name(process)] += times.user + times.system + ended
        return dict(used)

    def memory_mib(self) -> dict[str, float]:
        """Proportional set size by process: memory that processes share is counted once."""
        used: dict[str, float] = defaultdict(float)
        for process in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):
                used[_name(process)] += process.memory_full_info().pss / 2**20
        return dict(used)

    async def add_members(self, number: int) -> list[str]:
        """New members with an empty wallet, written past the API: a million sign-ups are not what is measured."""
        connection = await asyncpg.connect(self.url("member"))
        members = [uuid7() for _ in range(number)]
        await connection.execute(
            """
            INSERT INTO members (member_id, status, kek_id, data_key, phone_verified, joined_on, created_at)
            SELECT m, 'live', 'none', 'none', false, current_date, now() FROM unnest($1::uuid[]) AS m
            """,
            members,
        )
        await connection.execute(
            """
            INSERT INTO wallets (member_id, programme_id, balance, pending, debt, sequence, expiries, maturities, updated_at)
            SELECT m, 'demo', 0, 0, 0, 0, '{}', '{}', now() FROM unnest($1::uuid[]) AS m
            """,
            members,
        )
        await connection.close()
        return members

    async def settle(self) -> None:
        """Leaves no work of an earlier step to the next: statistics, dead rows, a checkpoint."""
        for database in ("member", "gateway"):
            connection = await asyncpg.connect(self.url(database))
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
            await connection.close()

    async def sell(self, members: list[str], *, clients: int, seconds: int, rate: int = 0, prefix: str, seed: int) -> dict[str, Any]:
        """What the generator of load, in a process of its own, says of sales to these members; `rate` 0: as fast as they are answered."""
        job = {
            "host": "127.0.0.1",
            "port": self.port,
            "key": self.up["till_key"],
            "store_id": self.up["store_id"],
            "till_id": self.up["till_id"],
            "sold_at": SystemClock().now().isoformat(),
            "members": members,
            "clients": clients,
            "seconds": seconds,
            "rate": rate,
            "prefix": prefix,
            "seed": seed,
        }
        generator = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.load", cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        printed, _ = await generator.communicate(json.dumps(job).encode())
        said: dict[str, Any] = json.loads(printed)
        return said

    def pgbench(self, seconds: int) -> float:
        """Transactions per second of pgbench's TPC-B, scale 20, 16 clients, over the same server's socket."""
        environment = os.environ | {"PGHOST": self.socket_dir, "PGUSER": "postgres"}
        pgbench = str(self.binaries / "pgbench")
        existing = subprocess.run(
            [str(self.binaries / "psql"), "-Atc", "SELECT 1 FROM pg_database WHERE datname = 'pgbench'"],
            env=environment, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        if not existing:
            subprocess.run([str(self.binaries / "createdb"), "pgbench"], env=environment, check=True)
            subprocess.run([pgbench, "-i", "-q", "-s", "20", "pgbench"], env=environment, check=True, capture_output=True)
        subprocess.run([str(self.binaries / "psql"), "-qc", "CHECKPOINT", "pgbench"], env=environment, check=True)
        printed = subprocess.run(
            [pgbench, "-c", "16", "-j", "2", "-T", str(seconds), "pgbench"], env=environment, check=True, capture_output=True, text=True
        ).stdout
        return float(next(line for line in printed.splitlines() if line.startswith("tps")).split()[2])


def _name(process: psutil.Process) -> str:
    if process.name() == "postgres":
        return "postgres"
    command = process.cmdline()
    return next((name for name in ("gateway", "member", "reporting", "kafka.Kafka") if name in command), process.name())
