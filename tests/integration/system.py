"""The whole system on this machine, started as `make up` starts it: PostgreSQL, member, reporting, gateway and where asked for Kafka."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import httpx
import psutil

from regulars_cli.up.installation import Installation
from regulars_cli.up.processes import tied_to_this_process
from tests.integration.api import Api

# These tests kill more often than any machine does; the pauses of a supervisor that sees the same process die again and again would
# leave little time to write in. And they put a relay between the services and their bus.
_UP = """
import os, sys
from regulars_cli import main
from regulars_cli.up import supervisor, topology
supervisor.STEADY_SECONDS = 0
if bus_url := os.environ.pop("TEST_BUS_URL"):
    topology.Topology.bus_url = bus_url
sys.exit(main.main(sys.argv[1:]))
"""
START_SECONDS = 90
STOP_SECONDS = 60


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Returns as soon as the condition holds; fails, naming `what` was waited for, when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} seconds"
        pause.wait(0.05)


@contextmanager
def running_system(
    kafka: str | None = None, *, bus_url: str = "", ops_port: int | None = None, prepare: Callable[["System"], None] = lambda _: None
) -> Iterator["System"]:
    """A system of its own in a new folder, stopped and removed at the end; its bus is PostgreSQL, a `local` Kafka, or one at host:port.

    Services reach that PostgreSQL or Kafka by `bus_url` if it is given. `ops_port`: the first port on which operators reach the services.
    `prepare` is called before the first start.
    """
    folder = Path(tempfile.mkdtemp(prefix="regulars-test-"))
    # Root's PostgreSQL runs as another user, to whom pytest's own folders are closed.
    folder.chmod(0o711)
    system = System(folder, kafka, bus_url, ops_port)
    try:
        prepare(system)
        system.start()
        yield system
    except BaseException as error:
        # The folder is gone when the failure is shown.
        error.add_note("\n".join(["Errors logged by the system:", *system.errors_logged()[-10:]]))
        raise
    finally:
        system.stop()
        # Where the temporary folder is closed to others, PostgreSQL's folder is a link to one that is not.
        for link in (path for path in folder.rglob("*") if path.is_symlink()):
            if link.resolve().is_relative_to("/var/lib/regulars/"):
                shutil.rmtree(link.resolve().parent, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


class System:
    """One installation: where it is, its keys, and ways to stop, start and kill its parts."""

    def __init__(self, folder: Path, kafka: str | None = None, bus_url: str = "", ops_port: int | None = None) -> None:
        self.var = folder / "var"
        self._kafka = kafka
        self._bus_url = bus_url
        self._ops = [] if ops_port is None else ["--ops", str(ops_port)]
        self._console = folder / "console.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[Api] = []
        self._installation = Installation(self.var)

    def start(self) -> None:
        """Starts everything and waits until `up.json` says that it is ready."""
        command = [sys.executable, "-c", _UP, "up", "--var", str(self.var), "--port", str(self._port)]
        # Said either way: what the tests' environment says of Kafka is meant for the tests' own broker.
        command += ["--kafka", self._kafka or "", *self._ops]
        with self._console.open("ab") as console:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # Ctrl-C on the tests' terminal leaves stopping to `stop`; should the tests be killed, the kernel asks it to stop.
                start_new_session=True,
                env={**os.environ, "TEST_BUS_URL": self._bus_url},
                preexec_fn=tied_to_this_process(),  # noqa: PLW1509 - nothing else runs while the tests start a system
            )
        self._process = process

        def ready() -> bool:
            assert process.poll() is None, f"`regulars up` ended:\n{self._console.read_text()}"
            return self._installation.read_up().get("pid") == process.pid

        wait_until(ready, "the system is up")

    def stop(self) -> None:
        """Stops everything, as Ctrl-C does."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            finally:
                # What the kernel then signals, if it hangs, are the children.
                self._process.kill()
                self._process = None

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._process is not None

    @property
    def postgres_socket(self) -> Path:
        """Where the embedded server listens. Raises OSError while there is none."""
        lines = (self.var / "postgres" / "postmaster.pid").read_text().splitlines()
        if len(lines) < 5:
            raise ConnectionRefusedError
        return Path(lines[4]) / ".s.PGSQL.5432"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def console(self) -> str:
        """What the supervisor said so far."""
        return self._console.read_text()

    @property
    def store_id(self) -> str:
        return str(self._installation.read_up()["store_id"])

    @property
    def till_id(self) -> str:
        return str(self._installation.read_up()["till_id"])

    @property
    def ops(self) -> Mapping[str, str]:
        """Where operators reach each service, as host:port; nowhere without `ops_port`."""
        found: Mapping[str, str] = self._installation.read_up().get("ops", {})
        return found

    def key(self, role: str) -> str:
        """The key of the demo's `till` or `admin`."""
        return str(self._installation.read_up()[f"{role}_key"])

    def api(self, key: str | None) -> Api:
        """A client with this key, closed when the system stops."""
        client = Api(self.url, key)
        self._clients.append(client)
        return client

    def pid(self, name: str) -> int:
        """The process of `gateway`, `member`, `reporting`, `postgres` or `kafka` that runs now."""
        return next(process.identity.pid for process in self._installation.running_processes() if process.name == name)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills it without a warning, or ends it by another signal; the supervisor starts it again."""
        with suppress(StopIteration, ProcessLookupError):  # it is just being started again
            os.kill(self.pid(name), number)

    def kill_connection(self, random: Random) -> None:
        """Kills one of PostgreSQL's own processes: it throws out every connection, recovers, and goes on."""
        with suppress(StopIteration, psutil.NoSuchProcess, IndexError):
            random.choice(psutil.Process(self.pid("postgres")).children()).kill()

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Within the block the process is there and does nothing; unless it is just being started again, or killed meanwhile."""
        with ExitStack() as at_end:
            with suppress(StopIteration, psutil.NoSuchProcess):
                process = psutil.Process(self.pid(name))
                process.suspend()
                at_end.callback(_resume, process)
            yield

    def is_whole(self) -> bool:
        """Whether the gateway and everything it depends on answer."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and set(answer.json()["dependencies"].values()) == {"ok"}

    def run_gateway_command(self, *arguments: str) -> Mapping[str, str]:
        """What an operator's command such as `python -m gateway issue-key …` prints, run with the gateway's own settings."""
        environment = psutil.Process(self.pid("gateway")).environ()
        done = subprocess.run([sys.executable, "-m", "gateway", *arguments], env=environment, capture_output=True, check=True)
        printed: dict[str, str] = json.loads(done.stdout)
        return printed

    def logs(self) -> dict[str, str]:
        """Everything that every process has logged, by file; and the console."""
        files = [self._console, *sorted((self.var / "log").glob("*.log*"))]
        return {file.name: file.read_text("utf-8", "replace") for file in files if file.exists()}

    def errors_logged(self) -> list[str]:
        """Every line of any log that says that something happened which nobody foresaw."""
        levels = ('"level": "error"', '"level": "critical"')
        return [
            f"{name}: {line}" for name, text in self.logs().items() for line in text.splitlines() if any(level in line for level in levels)
        ]


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()
