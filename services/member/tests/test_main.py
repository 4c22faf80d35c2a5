import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import TopicSpec
from kit.bus.postgres import MIGRATIONS as BUS_MIGRATIONS
from kit.crypto import generate
from kit.db import migrate, newest_revision
from kit.ids import uuid7
from kit.keys import create_missing_keys
from kit.outbox import Event, append
from kit.rpc import call_metadata, create_channel
from kit.settings import load
from kit.tokens import TokenMinter
from member.database import MIGRATIONS
from regulars.member.v1 import programme_service_pb2 as pb
from regulars.member.v1.programme_service_pb2_grpc import ProgrammeServiceStub

DEMO = Path(__file__).parents[3] / "programmes" / "demo.yaml"


@pytest.fixture
def environment(make_database: Callable[..., str], tmp_path: Path) -> dict[str, str]:
    """Settings of a member service with an empty database and keys of its own."""
    create_missing_keys(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {
        **os.environ,
        "MEMBER_DATABASE_URL": make_database(),
        "BUS_URL": "postgresql://postgres@127.0.0.1:1/bus",
        "MEMBER_LISTEN": f"127.0.0.1:{port}",
        "INTERNAL_TOKEN_PUBLIC_KEY_FILE": str(tmp_path / "internal_token_public.pem"),
        "PERSONAL_DATA_KEY_FILE": str(tmp_path / "personal_data.json"),
    }


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a subcommand to its end."""
    return subprocess.run(
        [sys.executable, "-m", "member", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """Starts a subcommand that goes on."""
    return subprocess.Popen([sys.executable, "-m", "member", *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def logged(process: "subprocess.Popen[str]") -> Iterator[dict[str, object]]:
    """The log of a running service, line by line."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{"):
            yield json.loads(line)


def wait_until_logged(process: "subprocess.Popen[str]", message: str) -> None:
    assert message in (line["message"] for line in logged(process)), f"the log ends without {message!r}"


async def test_all_migrates_serves_and_stops_when_told(environment: dict[str, str], tmp_path: Path) -> None:
    with start(environment, "all") as process:
        wait_until_logged(process, "migrated")
        wait_until_logged(process, "serving")
        applied = run(environment, "apply-programme", str(DEMO))
        assert (applied.returncode, applied.stdout) == (0, "demo is at version 1, from 2010-01-01.\n")
        token = TokenMinter((tmp_path / "internal_token_private.pem").read_bytes()).mint("till", ("till",), None)
        async with create_channel(environment["MEMBER_LISTEN"]) as channel:
            answer = await ProgrammeServiceStub(channel).GetProgramme(
                pb.GetProgrammeRequest(programme_id="demo"), metadata=call_metadata(token), timeout=10
            )
        assert json.loads(answer.body)["current_version"] == 1

        second = run(environment, "serve")
        assert second.returncode == 1
        assert second.stderr.endswith(f"{environment['MEMBER_LISTEN']} cannot be listened on: is another process there?\n")

        process.send_signal(signal.SIGTERM)
        wait_until_logged(process, "stopping")
        assert process.wait(timeout=30) == 0


def test_only_what_relays_needs_a_bus(environment: dict[str, str], make_database: Callable[..., str], migrated_database: str) -> None:
    del environment["BUS_URL"]
    environment["MEMBER_DATABASE_URL"] = make_database(migrated_database)
    for subcommand in ("relay", "all"):
        ended = run(environment, subcommand)
        assert (ended.returncode, ended.stderr) == (2, "Set BUS_URL.\n")
    ended = run(environment | {"BUS_URL": "https://bus"}, "relay")
    assert (ended.returncode, ended.stderr) == (2, "BUS_URL must begin with postgresql:// or kafka://.\n")
    with start(environment, "serve") as process:
        wait_until_logged(process, "serving")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("arguments", [("relay",), ("all", "--no-migrate")])
async def test_events_are_relayed(
    environment: dict[str, str], make_database: Callable[..., str], migrated_database: str, arguments: tuple[str, ...]
) -> None:
    environment |= {"MEMBER_DATABASE_URL": make_database(migrated_database), "BUS_URL": make_database()}
    await migrate(environment["BUS_URL"], BUS_MIGRATIONS)
    event = Event(uuid7(), "member.sale.v1", uuid7(), "regulars.member.v1.SaleRecorded", b"", "", datetime(2026, 11, 22, tzinfo=UTC))
    connection = await asyncpg.connect(environment["MEMBER_DATABASE_URL"])
    await append(connection, [event])
    async with connect(load(BusSettings, environment), client_name="test") as bus:
        await bus.create_topics([TopicSpec(event.topic, 4, timedelta(days=1))])
        with start(environment, *arguments) as process:
            wait_until_logged(process, "relaying")
            async with asyncio.timeout(30):
                while await connection.fetchval("SELECT EXISTS (SELECT FROM outbox)"):
                    pass
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        assert [message.event_id async for messages in bus.read(event.topic) for message in messages] == [event.event_id]
    await connection.close()


def test_serving_needs_a_migrated_database(environment: dict[str, str]) -> None:
    ended = run(environment, "serve")
    assert ended.returncode == 1
    assert f"run `python -m member migrate` to bring it to {newest_revision(MIGRATIONS)}" in ended.stderr


async def test_a_pod_waits_until_the_database_is_at_its_release_or_newer(environment: dict[str, str]) -> None:
    early = run(environment, "await-migrated", "--seconds", "0")
    assert (early.returncode, early.stderr.count("\n")) == (1, 1)
    assert early.stderr.startswith(f"The database is at revision none, and this release needs {newest_revision(MIGRATIONS)}")
    with start(environment, "await-migrated") as waiting:
        await migrate(environment["MEMBER_DATABASE_URL"], MIGRATIONS)
        assert waiting.wait(timeout=30) == 0
    connection = await asyncpg.connect(environment["MEMBER_DATABASE_URL"])
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    assert run(environment, "await-migrated", "--seconds", "0").returncode == 0
    nowhere = environment | {"MEMBER_DATABASE_URL": "postgresql://postgres@127.0.0.1:1/member"}
    assert "does not answer (ConnectionRefusedError)" in run(nowhere, "await-migrated", "--seconds", "0").stderr


async def test_a_database_of_a_newer_release_is_refused_in_one_sentence(environment: dict[str, str]) -> None:
    await migrate(environment["MEMBER_DATABASE_URL"], MIGRATIONS)
    connection = await asyncpg.connect(environment["MEMBER_DATABASE_URL"])
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    ended = run(environment, "all")
    assert ended.returncode == 3
    assert ended.stderr.startswith("The database is at revision 9999, which this release")
    assert ended.stderr.count("\n") == 1


def test_missing_settings_are_named_together(environment: dict[str, str]) -> None:
    kept = {key: value for key, value in environment.items() if key not in ("PERSONAL_DATA_KEY_FILE", "INTERNAL_TOKEN_PUBLIC_KEY_FILE")}
    ended = run(kept, "serve")
    assert (ended.returncode, ended.stderr) == (2, "Set INTERNAL_TOKEN_PUBLIC_KEY_FILE.\nSet PERSONAL_DATA_KEY_FILE.\n")


def test_a_key_file_that_is_missing_is_named(environment: dict[str, str]) -> None:
    ended = run(environment | {"PERSONAL_DATA_KEY_FILE": "/nowhere/keys.json"}, "serve")
    assert ended.returncode == 1
    assert "/nowhere/keys.json cannot be read" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_another_installations_keys_are_refused_in_one_sentence(
    environment: dict[str, str], make_database: Callable[..., str], migrated_database: str, tmp_path: Path
) -> None:
    environment = environment | {"MEMBER_DATABASE_URL": make_database(migrated_database)}
    with start(environment, "serve") as process:
        wait_until_logged(process, "serving")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    file = tmp_path / "personal_data.json"
    file.write_bytes(generate())
    ended = run(environment, "serve")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"The keys in {file} are not the ones this database was written with: "
        "put back the personal_data.json of the installation that made it."
    )


async def test_a_retired_key_that_left_too_early_is_named(
    environment: dict[str, str], make_database: Callable[..., str], migrated_database: str, tmp_path: Path
) -> None:
    url = make_database(migrated_database)
    connection = await asyncpg.connect(url)
    await connection.execute(
        """
        INSERT INTO members (member_id, status, kek_id, data_key, phone_verified, joined_on, created_at)
        VALUES (gen_random_uuid(), 'live', '0123456789abcdef', '', false, '2026-01-01', '2026-01-01')
        """
    )
    await connection.close()
    ended = run(environment | {"MEMBER_DATABASE_URL": url}, "serve")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f"{tmp_path / 'personal_data.json'} lacks the key-encryption key 0123456789abcdef of some members: put it under `retired_keks`."
    )


def test_keys_are_rewrapped_by_command(environment: dict[str, str], migrated_database: str) -> None:
    ended = run(environment | {"MEMBER_DATABASE_URL": migrated_database}, "rewrap-keys")
    assert (ended.returncode, ended.stdout) == (0, "0 data keys were moved under the present key-encryption key.\n")


def test_a_programme_that_is_not_valid_is_refused_with_its_faults(
    environment: dict[str, str], migrated_database: str, tmp_path: Path
) -> None:
    file = tmp_path / "programme.yaml"
    file.write_text("programme_id: demo\n")
    ended = run(environment | {"MEMBER_DATABASE_URL": migrated_database}, "apply-programme", str(file))
    assert ended.returncode == 1
    assert "  /earn: It is needed.\n" in ended.stderr
