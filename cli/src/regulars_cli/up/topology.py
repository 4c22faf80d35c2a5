"""What runs on one machine: every process, its settings and the order, readable in one place.

till ──REST──> gateway ──gRPC, Unix socket──> member ──relay──> bus ──> reporting
                  │ └─────gRPC, Unix socket───────────────────────────────> │ └── ClickHouse, in its own process
                  └── database `gateway`         └── database `member`     └── database `bus`, or Kafka
                                                        (one PostgreSQL)

Sales need the gateway, member and PostgreSQL. While the bus or reporting is away, events wait in `member`'s outbox.
"""

import json
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from regulars_cli.up.processes import ProcessSpec

REPOSITORY = Path(__file__).resolve().parents[4]
DATABASES = ("member", "gateway")
BUS_DATABASE = "bus"
# In the order of their operators' ports.
SERVICES = ("gateway", "member", "reporting")
OPS_PORTS = len(SERVICES)
LONGEST_SOCKET_NAME = "reporting.sock"
TOPICS = REPOSITORY / "protos" / "topics.yaml"


@dataclass(frozen=True)
class Topology:
    """The services of one installation over one PostgreSQL server; `kafka`, host:port, carries the bus, or else PostgreSQL does.

    With `ops_port` operators reach the gateway's metrics and health on that port of this machine, member's on the next, and reporting's on
    the one after.
    """

    server_url: str
    keys: Path
    logs: Path
    sockets: Path
    facts: Path
    host: str
    port: int
    kafka: str | None = None
    ops_port: int | None = None

    @property
    def url(self) -> str:
        """Where clients find the gateway."""
        return f"http://{self.host}:{self.port}"

    @property
    def bus_url(self) -> str:
        """What carries the events."""
        return f"kafka://{self.kafka}" if self.kafka else with_database(self.server_url, BUS_DATABASE)

    @property
    def databases(self) -> tuple[str, ...]:
        """Those that the server must have."""
        return DATABASES if self.kafka else (*DATABASES, BUS_DATABASE)

    @property
    def ops(self) -> dict[str, str]:
        """Where operators reach each service, if they do."""
        if self.ops_port is None:
            return {}
        return {name: f"127.0.0.1:{self.ops_port + number}" for number, name in enumerate(SERVICES)}

    def environment(self) -> dict[str, str]:
        """The settings of all services."""
        return {
            "MEMBER_DATABASE_URL": with_database(self.server_url, "member"),
            "MEMBER_LISTEN": f"unix:{self._member_socket}",
            "INTERNAL_TOKEN_PUBLIC_KEY_FILE": str(self.keys / "internal_token_public.pem"),
            "PERSONAL_DATA_KEY_FILE": str(self.keys / "personal_data.json"),
            "GATEWAY_DATABASE_URL": with_database(self.server_url, "gateway"),
            "GATEWAY_HOST": self.host,
            "GATEWAY_PORT": str(self.port),
            "MEMBER_ADDRESS": f"unix:{self._member_socket}",
            "BUS_URL": self.bus_url,
            "REPORTING_LISTEN": f"unix:{self._reporting_socket}",
            "REPORTING_ADDRESS": f"unix:{self._reporting_socket}",
            # Unless CLICKHOUSE_URL names a server.
            "REPORTING_DATA_DIR": str(self.facts),
            "INTERNAL_TOKEN_PRIVATE_KEY_FILE": str(self.keys / "internal_token_private.pem"),
            "FINGERPRINT_KEY_FILE": str(self.keys / "fingerprint.key"),
            # The allocator's per-thread pools would cost more memory than they save time.
            "MALLOC_ARENA_MAX": "2",
        }

    def services(self) -> tuple[ProcessSpec, ...]:
        """Every service; they are started together and stopped one by one, the last first, so the edge closes before what it calls."""
        return (
            self._service("member", ("all", "--no-migrate"), lambda: _accepts(self._member_socket)),
            self._service("reporting", ("all", "--no-migrate"), lambda: _accepts(self._reporting_socket), is_vital=False),
            self._service("gateway", ("serve",), lambda: _is_healthy(self.host, self.port)),
        )

    def _service(self, name: str, arguments: tuple[str, ...], ready: Callable[[], bool], *, is_vital: bool = True) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            command=(sys.executable, "-m", name, *arguments),
            log=self.logs / f"{name}.log",
            ready=ready,
            # Said either way: one address for all, of the caller's environment, could be only one's.
            environment=self.environment() | {"OPS_LISTEN": self.ops.get(name, "")},
            stop_signal=signal.SIGTERM,
            # They finish the calls under way within 20 seconds.
            stop_seconds=25,
            is_vital=is_vital,
        )

    @property
    def _member_socket(self) -> Path:
        return self.sockets / "member.sock"

    @property
    def _reporting_socket(self) -> Path:
        return self.sockets / LONGEST_SOCKET_NAME


def with_database(server_url: str, database: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{database}"))


def _accepts(path: Path) -> bool:
    """Whether a server listens on the Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _is_healthy(host: str, port: int) -> bool:
    """Whether the gateway and all that sales need are there. By hand: the library's client would bring TLS into the supervisor's memory."""
    try:
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=5) as connection:  # noqa: S104
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return False
    if answer.split(b" ")[1:2] != [b"200"]:
        return False
    # The gateway is ready while another service is away, and says which.
    dependencies: dict[str, str] = json.loads(answer.partition(b"\r\n\r\n")[2])["dependencies"]
    return all(state == "ok" for name, state in dependencies.items() if name != "reporting")
