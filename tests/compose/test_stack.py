"""`docker compose up` from a clean copy: it says how to sign in, works, keeps what it was given, and gives nobody more than they need."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from kit.clock import SystemClock
from tests.compose.stack import Stack
from tests.integration.api import Api, Json
from tests.integration.given import VARIABLE
from tests.integration.shop import Till
from tests.integration.system import wait_until

pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).resolve().parents[2]
BACKUP_PAGE = (REPOSITORY / "docs" / "backup.md").read_text("utf-8")
OURS = ("gateway-serve", "member-serve", "member-relay", "reporting-serve", "reporting-consume")
JOBS = ("keys", "migrate-gateway", "migrate-member", "migrate-reporting", "topics", "programmes", "welcome")
SERVERS = ("postgres", "kafka", "clickhouse")
# These talk to the API alone.
JOURNEYS = ("tests/integration/test_worked_examples.py", "tests/integration/test_api_conventions.py")


def net_sales(admin: Api, store_id: str) -> int:
    """What the reports say that a store sold, in its currency's smallest unit."""
    today = SystemClock().now().date()
    query: Json = {
        "metrics": ["net_sales_minor"],
        "dimensions": ["store"],
        "from": str(today - timedelta(days=2)),
        "to": str(today + timedelta(days=2)),
        "filters": [{"field": "currency", "op": "eq", "values": ["CNY"]}],
    }
    rows: dict[str, int] = {row[0]: row[1] for row in admin.post("/v1/reports/query", query, 200)["rows"]}
    return rows.get(store_id, 0)


def sell_and_find_in_reports(stack: Stack) -> int:
    """Records a sale and waits until the reports have it; what they then say in all."""
    notes = stack.notes()
    admin, till = stack.api("admin"), Till(stack.api("till"), notes["store_id"], notes["till_id"])
    before = net_sales(admin, notes["store_id"])
    sold = till.sell(till.sign_up(name="王芳"))
    wait_until(lambda: net_sales(admin, notes["store_id"]) == before + sold["net_minor"], "the sale is in the reports", 60)
    return before + int(sold["net_minor"])


def as_a_person_would(stack: Stack, line: str) -> bytes:
    """What a line gives that somebody copied from the console."""
    return subprocess.run(line, shell=True, check=True, capture_output=True, cwd=stack.folder).stdout  # noqa: S602  # that is the point


def test_the_last_lines_say_how_to_sign_in_and_work_as_they_stand(stack: Stack) -> None:
    said = stack.welcome()
    assert said.startswith(f"Regulars is ready at {stack.url} ")
    commands = dict(re.findall(r"^  (\S.*?)  +(docker compose run .*)$", said, re.MULTILINE))
    keys = [as_a_person_would(stack, commands[f"the {holder}'s key"]).decode().strip() for holder in ("till", "administrator")]
    assert all(key.startswith("rk_") for key in keys)
    assert [key for key in keys if key in said] == [], "no key is in a log"
    curl = next(line for line in said.splitlines() if line.startswith("curl "))
    first, again = (as_a_person_would(stack, curl) for _ in range(2))
    assert json.loads(first)["net_minor"] == 19990
    assert first == again


def test_a_sale_comes_into_the_reports(stack: Stack) -> None:
    sell_and_find_in_reports(stack)


def test_operators_have_their_commands(stack: Stack) -> None:
    def run(*arguments: str) -> str:
        return stack.compose("run", "--rm", "-T", "cli", *arguments)

    assert "reporting is 0 messages behind." in run("bus", "lag")
    assert run("reconcile", "--reports").endswith(" 0 differences.\n")


def test_a_backup_can_be_taken_and_verified_and_the_doctor_finds_all_well(stack: Stack) -> None:
    stack.compose("run", "--rm", "-T", "cli", "backup", "run")
    stack.compose("run", "--rm", "-T", "cli", "backup", "verify")
    # 1: with warnings, as of this machine's disk.
    found = stack.compose("run", "--rm", "-T", "cli", "doctor", codes=(0, 1))
    assert " 0 failed." in found
    for line in (
        "The gateway at",
        "The database member is at",
        "The database gateway is at",
        "Kafka at",
        "All 4 topics",
        "ClickHouse is at",
    ):
        assert line in found, found


def test_the_journeys_of_the_integration_tests_hold_here_too(stack: Stack, tmp_path: Path) -> None:
    given = tmp_path / "system.json"
    given.write_text(json.dumps(stack.notes() | {"url": stack.url, "gateway_command": stack.gateway_command()}))
    environment = {name: value for name, value in os.environ.items() if name != "TEST_COMPOSE"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300", *JOURNEYS]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment | {VARIABLE: str(given)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"^(\d+) passed, \d+ deselected", done.stdout, re.MULTILINE), done.stdout[-500:]


def test_every_service_is_well_and_every_job_done(stack: Stack) -> None:
    containers = stack.containers()
    assert set(containers) == {*OURS, *JOBS, *SERVERS}
    for service in (*OURS, *SERVERS):
        assert containers[service]["State"]["Health"]["Status"] == "healthy", service
        assert containers[service]["RestartCount"] == 0, service
    assert {service: containers[service]["State"]["ExitCode"] for service in JOBS} == dict.fromkeys(JOBS, 0)
    volumes = [mount["Name"] for each in containers.values() for mount in each["Mounts"] if mount["Type"] == "volume"]
    assert [name for name in volumes if not name.startswith(f"{stack.project}_")] == [], "no volume is left behind without a name"


def test_our_containers_can_do_nothing_but_their_work(stack: Stack) -> None:
    containers = stack.containers()
    for service in (*OURS, *(job for job in JOBS if job != "keys")):
        config, host = containers[service]["Config"], containers[service]["HostConfig"]
        assert config["User"] == "10001:10001", service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert all(not mount["RW"] for mount in containers[service]["Mounts"] if mount["Destination"] != "/app/var"), service
    for service, container in containers.items():
        assert container["HostConfig"]["Memory"], f"{service} has no limit"
    assert containers["keys"]["HostConfig"]["NetworkMode"] == "none"


def test_only_the_gateway_can_be_reached_and_from_this_machine_alone(stack: Stack) -> None:
    published = {
        service: [binding for bindings in (container["HostConfig"]["PortBindings"] or {}).values() for binding in bindings]
        for service, container in stack.containers().items()
    }
    assert {service: bindings for service, bindings in published.items() if bindings} == {
        "gateway-serve": [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]
    }


def test_secrets_are_in_no_environment_and_each_container_has_its_own_only(stack: Stack) -> None:
    listing = "import pathlib; print(*sorted(path.name for path in pathlib.Path('/run/keys').iterdir()))"
    held = {service: stack.compose("exec", "-T", service, "python", "-c", listing).split() for service in OURS}
    assert held == {
        "gateway-serve": ["fingerprint.key", "gateway.pgpass", "internal_token_private.pem"],
        "member-serve": ["internal_token_public.pem", "member.pgpass", "personal_data.json"],
        "member-relay": ["member.pgpass"],
        "reporting-serve": ["clickhouse.password", "internal_token_public.pem"],
        "reporting-consume": ["clickhouse.password"],
    }
    reading = "import json, pathlib; print(json.dumps([p.read_text() for p in pathlib.Path('/run/keys').iterdir()]))"
    secrets: list[str] = []
    for service in OURS:
        for text in json.loads(stack.compose("exec", "-T", service, "python", "-c", reading)):
            secrets += [word for word in re.split(r"[\s:\"]+", text) if len(word) > 20]
    assert len(secrets) > 10
    environments = json.dumps({service: each["Config"] | {"Labels": None} for service, each in stack.containers().items()})
    assert [secret for secret in secrets if secret in environments] == []


def test_a_part_can_reach_what_it_needs_and_nothing_else(stack: Stack) -> None:
    def reaches(service: str, host: str, port: int) -> bool:
        script = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
        command = [f"{stack.project}-{service}-1", "python", "-c", script]
        return subprocess.run(("docker", "exec", *command), capture_output=True, check=False).returncode == 0

    allowed = [("gateway-serve", "member-serve", 8601), ("gateway-serve", "postgres", 5432), ("member-relay", "kafka", 9092)]
    forbidden = [("gateway-serve", "kafka", 9092), ("gateway-serve", "clickhouse", 8123), ("reporting-consume", "postgres", 5432)]
    assert {edge: reaches(*edge) for edge in (*allowed, *forbidden)} == dict.fromkeys(allowed, True) | dict.fromkeys(forbidden, False)


def test_every_part_tells_prometheus_of_itself(stack: Stack) -> None:
    """At the addresses that its configuration names, over the network that it shares with them."""
    configuration = yaml.safe_load((REPOSITORY / "deploy" / "observability" / "prometheus.yml").read_text("utf-8"))
    (regulars,) = (job for job in configuration["scrape_configs"] if job["job_name"] == "regulars")
    targets = [target for group in regulars["static_configs"] for target in group["targets"]]
    assert {target.partition(":")[0] for target in targets} == set(OURS)
    for target in targets:
        script = f"import urllib.request; print(urllib.request.urlopen('http://{target}/metrics', timeout=5).read().decode())"
        said = stack.compose("exec", "-T", "member-relay", "python", "-c", script)
        service, _, part = target.partition(":")[0].partition("-")
        assert re.search(rf'^regulars_build_info\{{part="{part}",service="{service}",version="[^"]+"\}} 1', said, re.MULTILINE), said[:2000]


@pytest.fixture
def identity(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What opens the backups of this test, which has `backup-wal` run beside."""
    (keygen,) = re.findall(r"^docker compose run .* backup keygen .*$", BACKUP_PAGE, re.MULTILINE)
    recipient = as_a_person_would(stack, keygen.replace("$PWD", str(tmp_path))).decode().strip()
    file = tmp_path / "regulars-backup.txt"
    # What is mounted must be readable to the container's user; the folder is closed to others.
    file.chmod(0o644)
    monkeypatch.setenv("BACKUP_RECIPIENTS", recipient)
    monkeypatch.setenv("COMPOSE_PROFILES", "backup")
    stack.up()
    yield file
    stack.compose("rm", "--stop", "--force", "backup-wal")


def test_any_moment_can_be_restored_as_the_page_says(stack: Stack, identity: Path) -> None:
    """By the very commands of docs/backup.md, out of an encrypted archive: what was sold by then is there, what came later is not."""

    def run(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        return stack.compose("run", "--rm", "-T", "cli", *arguments, codes=codes)

    def sell() -> Json:
        return till.sell(till.sign_up(name="王芳"))

    notes = stack.notes()
    admin, till = stack.api("admin"), Till(stack.api("till"), notes["store_id"], notes["till_id"])
    sold = net_sales(admin, notes["store_id"])
    kept = [sell()]
    assert "encrypted" in run("backup", "run")
    kept.append(sell())
    moment = SystemClock().now()
    mistake = sell()

    def reaches_it() -> bool:
        return datetime.fromisoformat(json.loads(run("backup", "list", "--json"))[-1]["restores_until"]) > moment

    wait_until(reaches_it, "the moment is in the archive", 90)
    script = "import urllib.request; print(urllib.request.urlopen('http://backup-wal:9600/metrics', timeout=5).read().decode())"
    said = stack.compose("exec", "-T", "member-relay", "python", "-c", script)
    assert '\nregulars_backup_last_rpo_seconds{kind="postgres"} ' in said

    (restore,) = re.findall(r"```sh\n(docker compose stop\n.*?)```", BACKUP_PAGE, re.DOTALL)
    restore = restore.replace("regulars_postgres", f"{stack.project}_postgres").replace("2026-11-22T14:15:00+08:00", moment.isoformat())
    restore = restore.replace(" cli restore", f" -v {identity}:/identity.txt:ro cli restore --identity /identity.txt")
    for line in restore.splitlines():
        as_a_person_would(stack, line)
    stack.up()
    wait_until(lambda: "reporting is 0 messages behind." in run("bus", "lag"), "the reports took in what Kafka has", 60)
    run("reconcile", "--reports", codes=(1,))
    run("reporting", "rebuild", "--from-ledger")
    run("reconcile")
    run("reconcile", "--reports")
    run("backup", "run")

    admin = stack.api("admin")
    for sale in kept:
        assert admin.get(f"/v1/sales/{sale['id']}")["net_minor"] == sale["net_minor"]
    assert admin.ask("GET", f"/v1/sales/{mistake['id']}").status_code == 404
    assert net_sales(admin, notes["store_id"]) == sold + sum(int(sale["net_minor"]) for sale in kept)


def test_data_and_keys_survive_and_a_second_start_changes_nothing(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    sold = sell_and_find_in_reports(stack)
    before = stack.notes()
    stack.down()
    stack.up()
    assert stack.notes() == before
    said = stack.welcome()
    assert said.count("Regulars is ready") == 1
    assert net_sales(stack.api("admin"), before["store_id"]) == sold
    assert sell_and_find_in_reports(stack) > sold
    # And where everything runs already.
    stack.up()
    assert stack.notes() == before
    memory = stack.memory_mib()
    with capsys.disabled():
        print(f"\nup took {stack.up_seconds} seconds; memory in MiB: {memory}, {sum(memory.values())} in all")  # noqa: T201  # figures for docs
