"""`regulars doctor`, over a real system and with each fault really caused."""

import argparse
import asyncio
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest

from kit.bus.connecting import BusSettings, connect
from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Bus, Message
from kit.bus.topics import all_specs, dead_letters_topic, load_topics
from kit.clock import HeldClock, SystemClock
from kit.crypto import PersonalDataKeys
from kit.db import advisory_key, migrate
from kit.ids import uuid7
from kit.keys import create_missing_keys
from kit.settings import load
from regulars_cli.access import VAR
from regulars_cli.backup.archive import Backup, Covered, lsn_text, write_json
from regulars_cli.backup.facts import FactsBackup
from regulars_cli.backup.stores import Folder
from regulars_cli.doctor import databases
from regulars_cli.doctor.bus import TESTED_KAFKA
from regulars_cli.doctor.command import examine, not_checked
from regulars_cli.doctor.findings import Finding, exit_code
from regulars_cli.doctor.surroundings import Surroundings, find_surroundings
from regulars_cli.main import main
from regulars_cli.up.kafka import VERSION, LocalKafka
from regulars_cli.up.postgres import EmbeddedPostgres
from tests.integration.system import System, running_system, wait_until

MakeDatabase = Callable[..., str]
TOPICS = load_topics((files("regulars") / "topics.yaml").read_text("utf-8"))
ROOT = Path(__file__).parents[3]
NOWHERE = "postgresql://someone:hunter2@127.0.0.1:9/member"


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with running_system() as running:
        yield running


def asked(**settings: str) -> Surroundings:
    """As in a pod with these settings."""
    parsed = argparse.Namespace(var=VAR, url="", ops=[], topics=None)
    return find_surroundings(parsed, settings)


def around(system: System, **changed: str) -> Surroundings:
    """As on the system's machine, but for what is changed."""
    found = find_surroundings(argparse.Namespace(var=system.var, url="", ops=[], topics=None), {})
    return replace(found, environ={**found.environ, **changed})


def found_in(surroundings: Surroundings) -> list[Finding]:
    return asyncio.run(examine(surroundings))


def wrong(findings: list[Finding]) -> dict[tuple[str, str], str]:
    """What is not well: by check and subject how bad it is. Everything wrong comes with what to do."""
    assert all(each.advice for each in findings if each.status != "ok")
    return {(each.check, each.subject): each.status for each in findings if each.status != "ok"}


def run(sql: str, url: str, *arguments: object) -> None:
    async def act() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    asyncio.run(act())


@pytest.fixture(scope="module")
def member_database(make_database: MakeDatabase) -> str:
    url = make_database()
    asyncio.run(migrate(url, "member:migrations"))
    return url


@pytest.fixture
def bus(make_database: MakeDatabase) -> str:
    """A bus that has no topics."""
    url = make_database()
    asyncio.run(migrate(url, "kit.bus:migrations"))
    return url


def on_bus(url: str, act: Callable[[Bus], Awaitable[None]]) -> None:
    async def run_it() -> None:
        async with connect(load(BusSettings, {"BUS_URL": url}), client_name="test") as opened:
            await act(opened)

    asyncio.run(run_it())


async def connections_while_most_are_used(surroundings: Surroundings) -> list[Finding]:
    used = [await asyncpg.connect(surroundings.get("GATEWAY_DATABASE_URL")) for _ in range(46)]
    try:
        return [each for each in await examine(surroundings) if each.check == "connections"]
    finally:
        await asyncio.gather(*(connection.close() for connection in used))


@pytest.mark.timeout(240)
def test_a_healthy_system_is_found_well_and_faults_that_come_are_named(
    system: System, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    backups = tmp_path / "backups"
    assert main(["backup", "wal", "--once", "--var", str(system.var), "--to", str(backups)]) == 0
    assert main(["backup", "run", "--var", str(system.var), "--to", str(backups)]) == 0
    wait_until(lambda: wrong(found_in(around(system))).keys() <= {("disk", "backups"), ("disk", "installation")}, "all is well", 60)
    capsys.readouterr()
    # How full this machine's disk is, and that it has but one, is not the system's fault.
    assert main(["doctor", "--var", str(system.var)]) in (0, 1)
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert "The database member at" in printed
    assert "The index_key key is that of the database member." in printed
    assert "The newest base backup is of" in printed

    assert main(["doctor", "--var", str(system.var), "--json"]) in (0, 1)
    document = json.loads(capsys.readouterr().out)
    assert document["status"] in ("ok", "warning")
    assert document["not_checked"] == []
    checks = {each["check"] for each in document["findings"]}
    assert checks >= {"address", "version", "migrations", "clock", "disk", "topics", "keys", "connections", "archiver", "outbox", "lag",
                      "dead letters", "backup", "slots", "recovery"}  # fmt: skip
    up = json.loads((system.var / "up.json").read_text())
    everything = json.dumps(document) + printed
    keys = (system.var / "keys" / "fingerprint.key").read_text().strip()
    assert not any(secret in everything for secret in (up["admin_key"], up["till_key"], keys))

    with system.frozen("reporting"):
        found = wrong(found_in(around(system)))
        assert found["address", "reporting"] == "failed"
    (finding,) = asyncio.run(connections_while_most_are_used(around(system)))
    assert finding.status in ("warning", "failed")
    system.stop()
    found = wrong(found_in(around(system)))
    assert {("address", name) for name in ("member", "reporting", "gateway", "bus")} <= found.keys()
    assert exit_code(found_in(around(system))) == 2


def test_addresses_are_named_without_who_asks_and_with_what_to_do() -> None:
    settings = {"MEMBER_DATABASE_URL": NOWHERE, "BUS_URL": "kafka://127.0.0.1:9", "MEMBER_ADDRESS": "127.0.0.1:9"}
    settings |= {"CLICKHOUSE_URL": "http://someone:hunter2@127.0.0.1:9/reporting", "REGULARS_URL": "http://127.0.0.1:9"}
    findings = found_in(asked(**settings))
    found = wrong(findings)
    assert {("address", name): "failed" for name in ("member", "bus", "clickhouse", "gateway")}.items() <= found.items()
    said = " ".join(each.sentence + each.advice for each in findings)
    assert "127.0.0.1:9/member" in said
    assert "hunter2" not in said
    assert "someone" not in said
    assert not_checked(asked(**settings)) == [
        "reporting (set REPORTING_ADDRESS)",
        "the database gateway (set GATEWAY_DATABASE_URL)",
        "keys (set INTERNAL_TOKEN_PRIVATE_KEY_FILE or INTERNAL_TOKEN_PUBLIC_KEY_FILE or FINGERPRINT_KEY_FILE or PERSONAL_DATA_KEY_FILE)",
    ]


def test_what_nothing_says_the_place_of_is_not_checked_and_quiet_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("MEMBER_DATABASE_URL", "GATEWAY_DATABASE_URL", "BUS_URL", "MEMBER_ADDRESS", "REPORTING_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REGULARS_URL", "http://127.0.0.1:9")
    assert main(["doctor", "--quiet", "--var", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "the bus (set BUS_URL)" in printed
    assert wrong(found_in(asked(REGULARS_URL="http://127.0.0.1:9"))) == {
        ("address", "gateway"): "failed",
        ("backup", "postgres"): "warning",
    }


def test_base_backups_without_wal_and_of_before_a_failover_are_told_of(tmp_path: Path) -> None:
    now, size = SystemClock().now(), 16 * 1024 * 1024
    backup = Backup(
        format=1, id="20261122T091500Z", system_identifier="1", started_at=now, ended_at=now - timedelta(hours=1), timeline=1,
        start_lsn=lsn_text(2 * size), end_lsn=lsn_text(2 * size + 500), segment_bytes=size, server_version="18.0", release="0", parts=[],
    )  # fmt: skip
    store = Folder(tmp_path / "backups")
    write_json(store, f"base/{backup.id}/backup.json", backup)
    settings = asked(REGULARS_URL="http://127.0.0.1:9", BACKUP_TO=store.place)
    assert wrong(found_in(settings))["backup", "wal"] == "warning"
    store.put("wal/00000002/000000020000000000000003.zst", [b""])
    write_json(store, "wal/00000002/covered.json", Covered(now, lsn_text(4 * size), 2))
    assert wrong(found_in(settings))["backup", "wal"] == "failed"


def test_facts_that_are_no_longer_backed_up_are_told_of(tmp_path: Path) -> None:
    now, store = SystemClock().now(), Folder(tmp_path / "backups")
    settings = asked(REGULARS_URL="http://127.0.0.1:9", BACKUP_TO=store.place)
    assert ("backup", "clickhouse") not in {(each.check, each.subject) for each in found_in(settings)}
    for hours, status in ((30, "warning"), (25, "ok")):
        taken = now - timedelta(hours=hours)
        identity = taken.strftime("%Y%m%dT%H%M%SZ")
        backup = FactsBackup(
            format=1, id=identity, started_at=taken, ended_at=taken, release="0", server_version="25.8", database="reporting",
            migration="0002_newest", disk="", files=1, size=1, positions=[],
        )  # fmt: skip
        write_json(store, f"facts/{identity}.json", backup)
        assert {each.subject: each.status for each in found_in(settings) if each.check == "backup"}["clickhouse"] == status


def test_a_relay_that_is_not_there_is_told_of_though_nothing_waits(member_database: str) -> None:
    settings = asked(MEMBER_DATABASE_URL=member_database)
    found = wrong(found_in(settings))
    assert found["relay", "member"] == "warning"
    assert ("outbox", "member") not in found

    async def while_one_leads() -> list[Finding]:
        connection = await asyncpg.connect(member_database)
        try:
            await connection.fetchval("SELECT pg_advisory_lock($1)", advisory_key("kit.bus.relay"))
            return await examine(settings)
        finally:
            await connection.close()

    assert ("relay", "member") not in wrong(asyncio.run(while_one_leads()))


def test_wal_that_nobody_fetches_is_told_of(reachable_path: Path) -> None:
    with EmbeddedPostgres(reachable_path / "data", settings={"max_connections": "20"}) as server:
        asyncio.run(migrate(server.url(), "member:migrations"))
        settings = asked(MEMBER_DATABASE_URL=server.url())
        found = found_in(settings)
        assert wrong(found)["archiver", "member"] == "warning"
        (said,) = [each.sentence for each in found if each.check == "archiver"]
        assert said.endswith("does not by itself, and it keeps none for `regulars backup wal`.")
        run("SELECT pg_create_physical_replication_slot('regulars_backup', true)", server.url())
        assert ("archiver", "member") not in wrong(found_in(settings))


def test_nothing_to_go_by_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MEMBER_DATABASE_URL", "GATEWAY_DATABASE_URL", "BUS_URL", "MEMBER_ADDRESS", "REPORTING_ADDRESS", "REGULARS_URL"):
        monkeypatch.delenv(name, raising=False)
    assert main(["doctor", "--var", str(tmp_path)]) == 2
    assert "up.json does not say where the system is" in capsys.readouterr().err


@pytest.mark.parametrize("revision, status", [("0003", "failed"), ("9999", "warning"), (None, "failed")])
def test_a_database_of_another_release_is_told_from_one_of_this(
    member_database: str, make_database: MakeDatabase, revision: str | None, status: str
) -> None:
    url = make_database(member_database)
    assert ("migrations", "member") not in wrong(found_in(asked(MEMBER_DATABASE_URL=url)))
    run("DROP TABLE alembic_version", url) if revision is None else run("UPDATE alembic_version SET version_num = $1", url, revision)
    assert wrong(found_in(asked(MEMBER_DATABASE_URL=url)))["migrations", "member"] == status


def test_a_database_whose_service_is_not_installed_is_looked_at_but_for_its_newest_revision(
    make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_database()
    asyncio.run(migrate(url, "gateway:migrations"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *given: None if name == "gateway" else find_spec(name, *given))
    findings = found_in(asked(GATEWAY_DATABASE_URL=url))
    assert wrong(findings).keys() == {("archiver", "gateway"), ("backup", "postgres")}
    (said,) = [each.sentence for each in findings if each.check == "migrations"]
    assert said == "The database gateway is at revision 0001; `gateway`, which would know its newest, is not installed here."
    run("DROP TABLE alembic_version", url)
    assert wrong(found_in(asked(GATEWAY_DATABASE_URL=url)))["migrations", "gateway"] == "failed"


@pytest.mark.parametrize("ahead, status", [(0.4, None), (2.0, "warning"), (-2.0, "warning"), (60.0, "failed"), (-3600.0, "failed")])
def test_a_clock_that_is_off_is_told_by_how_much(member_database: str, ahead: float, status: str | None) -> None:
    class Off:
        def now(self) -> datetime:
            return SystemClock().now() + timedelta(seconds=ahead)

    findings = found_in(replace(asked(MEMBER_DATABASE_URL=member_database), clock=Off()))
    (clock,) = [each for each in findings if each.check == "clock"]
    assert clock.status == (status or "ok")
    if status:
        assert ("behind" if ahead > 0 else "ahead of") in clock.sentence


@pytest.mark.parametrize("seconds, status", [(5, None), (60, "warning"), (3600, "failed")])
def test_events_that_wait_too_long_are_told_of(member_database: str, make_database: MakeDatabase, seconds: int, status: str | None) -> None:
    url = make_database(member_database)
    run(
        "INSERT INTO outbox (event_id, topic, key, type, payload, traceparent, recorded_at)"
        " VALUES (gen_random_uuid(), 'member.sale.v1', gen_random_uuid(), 't', '', '', now() - make_interval(secs => $1))",
        url,
        seconds,
    )
    assert wrong(found_in(asked(MEMBER_DATABASE_URL=url))).get(("outbox", "member")) == status


def test_topics_that_are_missing_or_other_are_named(bus: str) -> None:
    specs = {spec.name: spec for spec in all_specs(TOPICS)}
    fewer, shorter = replace(specs["member.points.v1"], partitions=2), replace(specs["member.member.v1"], retention=timedelta(days=1))
    on_bus(bus, lambda opened: opened.create_topics([specs["member.sale.v1"], fewer, shorter]))
    found = wrong(found_in(asked(BUS_URL=bus)))
    assert ("topics", "member.sale.v1") not in found
    assert found["topics", "member.points.v1"] == "failed"
    assert found["topics", "member.member.v1"] == "warning"
    assert found["topics", dead_letters_topic("reporting")] == "failed"


def test_topics_are_held_against_those_that_the_installation_was_made_with(bus: str, tmp_path: Path) -> None:
    made = tmp_path / "topics.yaml"
    made.write_text((files("regulars") / "topics.yaml").read_text("utf-8").replace("partitions: 4", "partitions: 24"), encoding="utf-8")
    on_bus(bus, lambda opened: opened.create_topics(all_specs(load_topics(made.read_text("utf-8")))))

    def topics_wrong(**settings: str) -> set[str]:
        return {subject for check, subject in wrong(found_in(asked(BUS_URL=bus, **settings))) if check == "topics"}

    assert topics_wrong() == {"member.sale.v1", "member.points.v1", "member.member.v1"}
    assert topics_wrong(REGULARS_TOPICS=str(made)) == set()


@pytest.mark.timeout(120)
def test_the_brokers_of_kafka_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalKafka(tmp_path / "kafka") as broker:
        settings = asked(BUS_URL=f"kafka://{broker.bootstrap}")
        on_bus(settings.get("BUS_URL"), lambda opened: opened.create_topics(all_specs(TOPICS)))
        findings = found_in(settings)
        assert wrong(findings).keys() == {("lag", "reporting"), ("backup", "postgres")}
        (said,) = [each.sentence for each in findings if (each.check, each.subject) == ("version", "kafka")]
        assert said == f"Kafka {TESTED_KAFKA} carries the events."
        assert VERSION.startswith(f"{TESTED_KAFKA}.")
        monkeypatch.setattr("regulars_cli.doctor.bus.LEAST_KAFKA", "4.9")
        assert wrong(found_in(settings))["version", "kafka"] == "warning"


def test_a_bus_on_a_server_of_its_own_is_looked_at_as_a_server_too(member_database: str, bus: str, reachable_path: Path) -> None:
    def servers(bus_url: str) -> set[tuple[str, str]]:
        findings = found_in(asked(MEMBER_DATABASE_URL=member_database, BUS_URL=bus_url))
        return {(each.check, each.subject) for each in findings if each.check == "clock" or each.subject.startswith("postgresql of ")}

    of_member = {("version", "postgresql of member"), ("clock", "PostgreSQL of member")}
    assert servers(bus) == of_member
    with EmbeddedPostgres(reachable_path / "data", settings={"max_connections": "20"}) as server:
        asyncio.run(migrate(server.url(), "kit.bus:migrations"))
        assert servers(server.url()) == of_member | {("version", "postgresql of bus"), ("clock", "PostgreSQL of bus")}


def test_a_group_that_nobody_reads_for_and_dead_letters_are_told_of(bus: str) -> None:
    async def lay_down(opened: Bus) -> None:
        await opened.create_topics(all_specs(TOPICS))
        message = Message("member.sale.v1", 0, 1, uuid7(), uuid7(), "regulars.member.v1.SaleRecorded", b"", "", SystemClock().now())
        await DeadLetters(opened, "reporting", HeldClock(SystemClock().now())).lay_down(message, "cannot_read")

    on_bus(bus, lay_down)
    found = wrong(found_in(asked(BUS_URL=bus)))
    assert found == {
        ("lag", "reporting"): "warning",
        ("dead letters", "reporting"): "warning",
        ("backup", "postgres"): "warning",
        ("archiver", "bus"): "warning",
    }


def test_keys_that_are_missing_open_foreign_or_ill_matched_are_told_apart(
    tmp_path: Path, make_database: MakeDatabase, member_database: str
) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    create_missing_keys(own)
    create_missing_keys(other)
    database = make_database(member_database)
    settings = {
        "MEMBER_DATABASE_URL": database,
        "INTERNAL_TOKEN_PRIVATE_KEY_FILE": str(own / "internal_token_private.pem"),
        "INTERNAL_TOKEN_PUBLIC_KEY_FILE": str(own / "internal_token_public.pem"),
        "PERSONAL_DATA_KEY_FILE": str(own / "personal_data.json"),
    }
    proof = PersonalDataKeys.load(own / "personal_data.json").index_key_proof()
    run("INSERT INTO key_checks VALUES ('index_key', $1)", database, proof)

    def keys(**changed: str) -> set[tuple[str, str]]:
        return {
            (each.subject, each.status) for each in found_in(asked(**settings | changed)) if each.check == "keys" and each.status != "ok"
        }

    assert keys() == set()
    (own / "personal_data.json").chmod(0o644)
    assert keys() == {("PERSONAL_DATA_KEY_FILE", "warning")}
    (own / "personal_data.json").chmod(0o600)
    assert keys(PERSONAL_DATA_KEY_FILE=str(other / "personal_data.json")) == {("index_key", "failed")}
    assert keys(INTERNAL_TOKEN_PUBLIC_KEY_FILE=str(other / "internal_token_public.pem")) == {("internal tokens", "failed")}
    assert keys(PERSONAL_DATA_KEY_FILE=str(own / "gone.json")) == {("PERSONAL_DATA_KEY_FILE", "failed")}
    (other / "personal_data.json").write_text("{}")
    assert keys(PERSONAL_DATA_KEY_FILE=str(other / "personal_data.json")) == {("personal data", "failed")}


def test_wal_that_cannot_be_archived_and_a_slot_that_holds_it_back_are_told_of(
    reachable_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"archive_mode": "on", "archive_command": "false", "max_connections": "20"}
    with EmbeddedPostgres(reachable_path / "data", settings=settings) as server:
        asyncio.run(migrate(server.url(), "member:migrations"))
        run("SELECT pg_create_physical_replication_slot('left_behind', true)", server.url())
        run("SELECT pg_switch_wal()", server.url())

        def found() -> dict[tuple[str, str], str]:
            return wrong(found_in(asked(MEMBER_DATABASE_URL=server.url())))

        wait_until(lambda: found().get(("archiver", "member")) == "failed", "the archiver failed", 60)
        monkeypatch.setattr(databases, "SLOT_WARNS_MB", 0)
        assert found()["slots", "member"] == "warning"


@pytest.mark.timeout(120)
def test_clickhouse_is_looked_at_over_http(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli.tests.doctor.clickhouse_server", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process, ExitStack() as at_end:
        at_end.callback(process.send_signal, signal.SIGTERM)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        found: Mapping[tuple[str, str], str] = wrong(found_in(asked(CLICKHOUSE_URL=f"{url}/default", REPORTING_ADDRESS="127.0.0.1:9")))
        assert found["migrations", "clickhouse"] == "failed"
        assert ("address", "clickhouse") not in found
        assert process.stdout.readline()
        settled = found_in(asked(CLICKHOUSE_URL=f"{url}/reports", REPORTING_ADDRESS="127.0.0.1:9"))
        assert ("migrations", "clickhouse") not in wrong(settled)
        assert any(each.check == "clock" and each.status == "ok" for each in settled)
    shutil.rmtree(tmp_path, ignore_errors=True)
