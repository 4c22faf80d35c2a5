"""`regulars up`: start everything on this machine, in the foreground, until Ctrl-C or `regulars down`."""

import argparse
import errno
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kit.clock import SystemClock
from kit.ids import uuid7
from regulars_cli.up import CannotStart
from regulars_cli.up.installation import Installation
from regulars_cli.up.postgres import EmbeddedPostgres
from regulars_cli.up.preparation import prepare_databases
from regulars_cli.up.sockets import socket_folder
from regulars_cli.up.supervisor import StopRequested, Supervisor, keep_log_small, stop_on_signals
from regulars_cli.up.topology import LONGEST_SOCKET_NAME, OPS_PORTS, REPOSITORY, Topology

DEFAULT_PORT = 8600
LOCAL = "local"
# A log that grew beyond this is kept once as `.1` and begun anew: at a start, and while running.
START_LOG_BYTES = 4 * 1024 * 1024
RUNNING_LOG_BYTES = 32 * 1024 * 1024
LOW_SPACE_MB = 200


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `up`."""
    parser = subparsers.add_parser("up", help="start everything on this machine, until Ctrl-C", description=__doc__)
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="where the gateway listens (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address it listens on (default %(default)s, this machine only)")
    parser.add_argument("--var", type=Path, default=REPOSITORY / "var", help="where the data is (default %(default)s)")
    parser.add_argument(
        "--database-url",
        default=os.environ.get("DATABASE_URL") or None,
        help="a PostgreSQL server to use instead of the embedded one, postgresql://user:password@host/database (or DATABASE_URL)",
    )
    parser.add_argument(
        "--kafka",
        metavar="local|HOST:PORT",
        default=os.environ.get("KAFKA") or None,
        help="carry events over Kafka instead of PostgreSQL: a broker of our own on this machine, or yours (or KAFKA)",
    )
    parser.add_argument(
        "--ops",
        metavar="PORT",
        type=_ops_port,
        default=None,
        help="let operators of this machine see metrics and health: the gateway's on this port, member's and reporting's on the next two",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 after a requested stop, 1 when it could not start."""
    # Lines appear at once also when the output goes to a file.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        with stop_on_signals():
            installation, kafka = Installation(arguments.var.absolute()), arguments.kafka or None
            up(installation, arguments.host, arguments.port, arguments.database_url, kafka, ops_port=arguments.ops)
    except StopRequested:
        return 0
    except CannotStart as error:
        print(f"Cannot start: {error}", file=sys.stderr)
    except OSError as error:
        print(f"Cannot start: {_sentence(error, arguments.var)}", file=sys.stderr)
    return 1


def up(
    installation: Installation, host: str, port: int, database_url: str | None, kafka: str | None = None, *, ops_port: int | None = None
) -> None:
    """Start all, say so, and look after it until `StopRequested`. `kafka`: None, `local`, or where brokers are.

    Raises:
        CannotStart: with one sentence that says what to do.
    """
    with installation.locked(), ExitStack() as at_end:
        for name in installation.stop_leftovers():
            say(f"Stopped the {name} that an earlier start left running.")
        _check_port(host, port)
        for number in range(OPS_PORTS if ops_port is not None else 0):
            _check_port("127.0.0.1", (ops_port or 0) + number, "`regulars up --ops PORT`")
        _trim_logs(installation, START_LOG_BYTES)
        supervisor = Supervisor(say, installation.note_processes)
        at_end.callback(installation.forget_processes)
        if database_url is None:
            server_url = _start_postgres(installation, supervisor, at_end)
        else:
            server_url = database_url
            at_end.callback(_stop, supervisor)
        if kafka == LOCAL:
            kafka = _start_kafka(installation, supervisor)
        sockets = socket_folder(installation.run, LONGEST_SOCKET_NAME)
        if sockets != installation.run:
            at_end.callback(shutil.rmtree, sockets, ignore_errors=True)
        topology = Topology(server_url, installation.keys, installation.logs, sockets, installation.facts, host, port, kafka, ops_port)
        seeded = prepare_databases(topology, installation, embedded=database_url is None)
        say("Starting member, reporting and gateway.")
        supervisor.start(topology.services())
        _announce(installation, topology, seeded)
        supervisor.watch(_Chores(installation))


def say(line: str) -> None:
    """Tell the console; a console that went away is no reason to stop."""
    with suppress(OSError, ValueError):
        print(line)


class _Chores:
    """What the supervisor does now and then: warn before the disk is full, and keep the logs small."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._warned = False

    def __call__(self) -> None:
        low = self._installation.free_mb() < LOW_SPACE_MB
        if low and not self._warned:
            folder, left = self._installation.folder, self._installation.free_mb()
            say(f"The disk that holds {folder} has {left} MB left: make room, or sales will be refused.")
        self._warned = low
        _trim_logs(self._installation, RUNNING_LOG_BYTES)


def _stop(supervisor: Supervisor) -> None:
    if supervisor.runs_something:
        say("Stopping.")
        supervisor.stop()
        say("Stopped.")


def _start_postgres(installation: Installation, supervisor: Supervisor, at_end: ExitStack) -> str:
    """The URL of the embedded server, started."""
    # Variables that PostgreSQL's drivers read are meant for another server.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    # The log of what is not yet in the tables may take a part of the disk, not all of it.
    wal_mb = min(4096, max(256, installation.free_mb() // 4))
    postgres = EmbeddedPostgres(
        installation.postgres, log=installation.logs / "postgres.log", settings={"max_wal_size": f"{wal_mb}MB", "min_wal_size": "128MB"}
    )
    fresh = not installation.postgres.exists()
    say("Making the database's folder and starting PostgreSQL." if fresh else "Starting PostgreSQL.")
    postgres.prepare()
    if not postgres.data_dir.is_relative_to(installation.folder):
        say(f"{installation.folder} is closed to other users, so PostgreSQL keeps its data in {postgres.data_dir.parent}.")
    at_end.callback(postgres.remove_socket_dir)
    at_end.callback(_stop, supervisor)
    supervisor.start([postgres.spec()])
    return postgres.url()


def _start_kafka(installation: Installation, supervisor: Supervisor) -> str:
    """Where the local broker is, started."""
    # Loaded by those who want it only.
    from regulars_cli.up.kafka import LocalKafka, is_downloaded  # noqa: PLC0415

    say("Starting Kafka." if is_downloaded() else "Downloading Kafka, once, and starting it.")
    broker = LocalKafka(installation.kafka, log=installation.logs / "kafka.log")
    broker.prepare()
    supervisor.start([broker.spec()])
    return broker.bootstrap


def _announce(installation: Installation, topology: Topology, seeded: Mapping[str, Any]) -> None:
    """Write `up.json`, from which commands find the gateway and the bus, and tell the console where everything is."""
    content = {"url": topology.url, **{name: seeded[name] for name in ("till_key", "admin_key", "store_id", "till_id")}, "pid": os.getpid()}
    content["bus"] = {"BUS_URL": topology.bus_url} | {name: value for name, value in os.environ.items() if name.startswith("KAFKA_")}
    # What an operator's commands need to find every part.
    given = {name: value for name, value in os.environ.items() if name.startswith(("KAFKA_", "CLICKHOUSE_"))}
    content["environment"] = topology.environment() | given
    if topology.ops:
        content["ops"] = topology.ops
        content["environment"]["OPS_ADDRESSES"] = ",".join(topology.ops.values())
    # Of every database this folder was started with: who goes back to one finds its keys still good.
    keys = {seeded["database"]: {name: seeded[name] for name in ("till_key", "admin_key")}}
    before = installation.read_up()
    installation.write_up(content | {"keys": before.get("keys", {}) | keys})
    say("")
    say(f"Regulars is ready at {topology.url} (pages at {topology.url}/docs). Ctrl-C or `make down` stops it.")
    if topology.ops:
        say(f"Metrics and health: {', '.join(f'{name} {address}' for name, address in topology.ops.items())} (/metrics, /readyz).")
    say(f"Events go over {f'Kafka at {topology.kafka}' if topology.kafka else 'PostgreSQL'}.")
    bus_before = before.get("bus", {}).get("BUS_URL")
    if bus_before and urlsplit(bus_before).scheme != urlsplit(topology.bus_url).scheme:
        say("They went another way at the last start. What had not come into the reports by then is brought into them by")
        say("`regulars reporting rebuild --from-ledger`.")
    if seeded["new"]:
        say(f"  till key   {seeded['till_key']}")
        say(f"  admin key  {seeded['admin_key']}")
        say(f"These keys are shown once; they are also in {installation.up_file}, which only you can read.")
        key = str(seeded["till_key"])
    else:
        say(f"The keys are in {installation.up_file}.")
        key = f'$(sed -n \'s/^  "till_key": "\\(.*\\)".*/\\1/p\' {shlex.quote(str(installation.up_file))})'
    say("Record a sale:")
    say("")
    say(curl_line(topology.url, key, str(seeded["store_id"]), str(seeded["till_id"])))
    say("")


def curl_line(url: str, key: str, store_id: str, till_id: str) -> str:
    """A command that records a sale of one pair of earphones, and gives the same answer when it is run again."""
    sale = {
        "operation_id": f"demo-{uuid7()}",
        "store_id": store_id,
        "till_id": till_id,
        "sold_at": SystemClock().now().isoformat(timespec="seconds"),
        "currency": "CNY",
        "lines": [
            {"line_no": 1, "sku": "A100", "description": "Earphones", "quantity": "1", "unit_price": "199.90", "amount_minor": 19990},
        ],
        "tenders": [{"type": "cash", "amount_minor": 19990}],
    }
    return (
        f'curl -sS {url}/v1/sales -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d {shlex.quote(json.dumps(sale))}'
    )


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return int(text)


def _ops_port(text: str) -> int:
    port = _port(text)
    if port + OPS_PORTS > 65536:
        raise argparse.ArgumentTypeError(f"the services take {OPS_PORTS} ports from this one on, up to 65535")
    return port


def _check_port(host: str, port: int, choose: str = "`make up PORT=…`") -> None:
    with socket.socket() as probe:
        # As servers do: what is left of ended connections does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = {errno.EADDRINUSE: "is in use", errno.EACCES: "needs more rights than this user has"}.get(error.errno or 0)
            raise CannotStart(f"Port {port} of {host} {reason or 'cannot be used'}; choose another with {choose}.") from None


def _trim_logs(installation: Installation, limit: int) -> None:
    for log in installation.logs.glob("*.log"):
        # A full disk has no room for the copy; the warning is out, and services go on.
        with suppress(OSError):
            keep_log_small(log, limit)


def _sentence(error: OSError, var: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {var} is full; make room first."
    if isinstance(error, PermissionError):
        return f"{error.filename or var} belongs to another user; start as that user, or give another folder with --var."
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."
