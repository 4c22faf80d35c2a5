"""The servers that all loops share: a durable PostgreSQL, as `make up` starts it, and a local Kafka, in a folder of their own."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
import psutil

from kit.bus.postgres import MIGRATIONS
from kit.db import migrate
from regulars_cli.up.kafka import LocalKafka
from regulars_cli.up.postgres import EmbeddedPostgres


class Servers:
    """Both servers for the length of a block; `KAFKA=host:port` in the environment is used instead of a broker of our own."""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="regulars-bench-events-"))
        self.folder.chmod(0o711)
        self.postgres = EmbeddedPostgres(self.folder / "postgres")
        self.postgres.start()
        self._kafka = None if os.environ.get("KAFKA") else LocalKafka(self.folder / "kafka")
        if self._kafka is not None:
            self._kafka.start()
        self._bus_url = ""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._kafka is not None:
            self._kafka.stop()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def bootstrap(self) -> str:
        """The broker, host:port."""
        return self._kafka.bootstrap if self._kafka is not None else os.environ["KAFKA"]

    async def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        connection = await asyncpg.connect(self.postgres.url())
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()
        return self.postgres.url(name)

    async def bus_url(self, backend: str) -> str:
        """The bus over `kafka` or `postgres`; its database is made when it is first asked for."""
        if backend == "kafka":
            return f"kafka://{self.bootstrap}"
        if not self._bus_url:
            url = await self.database("bus")
            await migrate(url, MIGRATIONS)
            self._bus_url = url
        return self._bus_url

    async def settle(self, *urls: str) -> None:
        """Leaves no work of an earlier step to the next: statistics, dead rows, a checkpoint."""
        for url in urls or (self.postgres.url(),):
            connection = await asyncpg.connect(url)
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
            await connection.close()

    def cpu_seconds(self) -> dict[str, float]:
        """CPU that each server used so far."""
        used = {"postgres": 0.0}
        server = psutil.Process(int((self.postgres.data_dir / "postmaster.pid").read_text().splitlines()[0]))
        for process in (*server.children(), server):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                # What ended connections used is the server's, as the time of its waited-for children.
                ended = times.children_user + times.children_system if process == server else 0.0
                used["postgres"] += times.user + times.system + ended
        if self._kafka is not None and self._kafka.pid is not None:
            times = psutil.Process(self._kafka.pid).cpu_times()
            used["kafka"] = times.user + times.system
        return used
