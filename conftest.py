"""What every package's tests share: a real PostgreSQL, databases of their own on it, and a real Kafka."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

# Before pytest takes the folder `kit/`, which holds `kit/tests`, for a namespace package of that name.
import kit  # noqa: F401
from regulars_cli.up import CannotStart
from regulars_cli.up import kafka as local_kafka
from regulars_cli.up.kafka import LocalKafka
from regulars_cli.up.postgres import EmbeddedPostgres

MakeDatabase = Callable[..., str]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped_in_ci(terminalreporter):
        terminalreporter.write_line("Some tests could not run, which is a failure where CI is set; `-ra` names them.", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == 0 and _skipped_in_ci(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped_in_ci(reporter: pytest.TerminalReporter | None) -> bool:
    """Whether this is continuous integration, where everything must run, and a test did not that needs nothing from elsewhere."""
    if not os.environ.get("CI") or reporter is None:
        return False
    return any("external_data" not in report.keywords for report in reporter.stats.get("skipped", []))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server, as the URL of its database `postgres`: `TEST_DATABASE_URL` if given, else an embedded one for this session."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="regulars-test-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        # The data is thrown away: nothing need survive a power cut.
        settings = {"fsync": "off", "full_page_writes": "off", "max_connections": "200"}
        with EmbeddedPostgres(Path(folder) / "data", settings=settings) as server:
            yield server.url()


@pytest.fixture(scope="session")
def make_database(postgres_url: str) -> Iterator[MakeDatabase]:
    """A factory of databases, `make_database(template=None) -> url`: new, empty or a copy of `template`, gone when the session ends."""
    made: list[str] = []

    def make(template: str | None = None) -> str:
        """The URL of a new database; `template` is the URL of one to copy, to which nobody may be connected."""
        name = f"test_{uuid.uuid4().hex}"
        source = f' TEMPLATE "{urlsplit(template).path[1:]}"' if template else ""
        _execute(postgres_url, f'CREATE DATABASE "{name}"{source}')
        made.append(name)
        return urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))

    yield make
    # The server of this session goes as it is.
    for name in made if os.environ.get("TEST_DATABASE_URL") else ():
        _execute(postgres_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """A Kafka broker as host:port: `KAFKA` if given, else one in Docker where an engine answers, else a local one for this session.

    Tests share it: each names its topics and groups as no other does.
    """
    given = os.environ.get("KAFKA")
    if given and given != "local":
        yield given
        return
    with ExitStack() as container:
        if given != "local" and (bootstrap := container.enter_context(_kafka_in_docker())):
            yield bootstrap
            return
    with tempfile.TemporaryDirectory(prefix="regulars-test-", ignore_cleanup_errors=True) as folder:
        # The data is thrown away: nothing need survive a power cut.
        broker = LocalKafka(Path(folder) / "kafka", settings={"log.flush.interval.messages": str(2**62)})
        try:
            broker.start()
        except CannotStart as error:
            pytest.skip(str(error))
        try:
            yield broker.bootstrap
        finally:
            broker.stop()


@contextmanager
def _kafka_in_docker() -> Iterator[str | None]:
    """The address of a broker in a container of its own; None where no engine answers or it cannot have the image."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run((docker, "info"), capture_output=True, check=False).returncode != 0:
        yield None
        return
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - large, and few tests need it
    from testcontainers.core.wait_strategies import PortWaitStrategy  # noqa: PLC0415

    (port,) = local_kafka.free_ports(1)
    settings = {
        **local_kafka.SETTINGS,
        "log.flush.interval.messages": str(2**62),
        "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": "1@localhost:9093",
    }
    environment = {f"KAFKA_{name.replace('.', '_').upper()}": value for name, value in settings.items()}
    try:
        container = DockerContainer(f"apache/kafka:{local_kafka.VERSION}")
        container.with_bind_ports(9092, port).with_envs(**environment).waiting_for(PortWaitStrategy(9092)).start()
    except Exception:  # noqa: BLE001 - the engine's client raises many kinds, and all mean that it will not do
        yield None
        return
    try:
        yield f"127.0.0.1:{port}"
    finally:
        container.stop()
        container.get_docker_client().client.close()


def _execute(url: str, statement: str) -> None:
    """Run one statement; in a thread of its own, so that it may be called while an event loop runs."""
    failed: list[BaseException] = []

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def in_thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
