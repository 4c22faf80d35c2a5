"""`regulars bus` over a real bus, that of PostgreSQL; both backends answer the same."""

import asyncio
import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Message, TopicPartition, TopicSpec
from kit.bus.postgres import MIGRATIONS, PostgresBus
from kit.bus.topics import DEAD_LETTERS_RETENTION, dead_letters_topic
from kit.clock import HeldClock
from kit.db import migrate
from kit.ids import uuid7
from kit.outbox import Event
from regulars.member.v1.points_events_pb2 import PointsMove, PointsMoved
from regulars_cli.main import main

AT = datetime(2026, 11, 21, 10, 3, 12, tzinfo=UTC)
TOPIC = "member.points.v1"
LETTERS = dead_letters_topic("reporting")
MOVED = PointsMoved(member_id=uuid7(), programme_id="demo", moves=[PointsMove(kind="earn", points=5)], balance=5)


def an_event(number: int) -> Event:
    key = MOVED.member_id
    return Event(uuid7(), TOPIC, key, MOVED.DESCRIPTOR.full_name, MOVED.SerializeToString(), "", AT + timedelta(seconds=number))


@pytest.fixture(scope="module")
def prepared(make_database: Callable[..., str]) -> str:
    url = make_database()

    async def prepare() -> None:
        await migrate(url, MIGRATIONS)
        async with PostgresBus(url, "test") as bus:
            await bus.create_topics([TopicSpec(TOPIC, 1, timedelta(days=30)), TopicSpec(LETTERS, 1, DEAD_LETTERS_RETENTION)])

    asyncio.run(prepare())
    return url


@pytest.fixture
def bus_url(prepared: str, make_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    url = make_database(prepared)
    monkeypatch.setenv("BUS_URL", url)
    return url


def on_bus(url: str, act: Callable[[PostgresBus], Any]) -> Any:
    async def run() -> Any:
        async with PostgresBus(url, "test") as bus:
            return await act(bus)

    return asyncio.run(run())


def lay_down(url: str, *codes: str) -> list[str]:
    """Dead letters of `reporting` with these codes; the ids of their events."""
    events = [an_event(number) for number in range(len(codes))]

    async def act(bus: PostgresBus) -> None:
        letters = DeadLetters(bus, "reporting", HeldClock(AT))
        for number, (event, code) in enumerate(zip(events, codes, strict=True)):
            message = Message(TOPIC, 0, number, event.event_id, event.key, event.type, event.payload, event.traceparent, event.recorded_at)
            await letters.lay_down(message, code)

    on_bus(url, act)
    return [event.event_id for event in events]


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["bus", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["bus", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.strip()


def test_topics_are_listed_with_what_they_hold(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    on_bus(bus_url, lambda bus: bus.publish([an_event(1), an_event(2)]))
    assert answered(capsys, "topics") == [
        {
            "name": LETTERS,
            "retention_seconds": DEAD_LETTERS_RETENTION.total_seconds(),
            "partitions": [{"partition": 0, "first_offset": 0, "next_offset": 0}],
        },
        {"name": TOPIC, "retention_seconds": 30 * 86400, "partitions": [{"partition": 0, "first_offset": 0, "next_offset": 2}]},
    ]
    assert main(["bus", "topics"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == [TOPIC, "1", "30", "days", "2", "2"]


def test_the_lag_of_a_group_is_what_it_has_not_committed(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(capsys, "lag") == []

    async def act(bus: PostgresBus) -> None:
        await bus.publish([an_event(number) for number in range(5)])
        await bus.set_offsets("reporting", {TopicPartition(TOPIC, 0): 2})

    on_bus(bus_url, act)
    (group,) = answered(capsys, "lag", "reporting")
    assert (group["group"], group["behind"]) == ("reporting", 3)
    assert group["partitions"] == [
        {"topic": TOPIC, "partition": 0, "behind": 3, "committed": 2, "first_offset": 0, "next_offset": 5, "owner": None}
    ]
    assert main(["bus", "lag"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "reporting is 3 messages behind."

    async def lay_down(bus: PostgresBus) -> None:
        await bus.set_offsets("reporting", {TopicPartition(LETTERS, 0): 0})
        await bus.publish([replace(an_event(number), topic=LETTERS) for number in range(4)])

    on_bus(bus_url, lay_down)
    (group,) = answered(capsys, "lag", "reporting")
    assert (group["behind"], [part["behind"] for part in group["partitions"]]) == (3, [4, 3]), "its dead letters are no events to handle"
    assert refused(capsys, "lag", "nobody") == "No group nobody ever read. Groups that did: reporting."


def test_a_dead_letter_is_listed_and_shown_whole(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bus", "dead-letters", "list"]) == 0
    assert capsys.readouterr().out == "No dead letters are open.\n"
    first, second = lay_down(bus_url, "not_decodable", "day_invalid")
    assert [(each["event_id"], each["code"], each["status"]) for each in answered(capsys, "dead-letters", "list")] == [
        (first, "not_decodable", "open"),
        (second, "day_invalid", "open"),
    ]
    shown = answered(capsys, "dead-letters", "show", second)
    assert shown["event"] == {
        "member_id": MOVED.member_id,
        "programme_id": "demo",
        "moves": [{"kind": "earn", "points": "5"}],
        "balance": "5",
    }
    assert (shown["topic"], shown["offset"], shown["group"], shown["decisions"]) == (TOPIC, 1, "reporting", [])
    assert main(["bus", "dead-letters", "show", second]) == 0
    said = capsys.readouterr().out
    assert "2026-11-21 10:03:12+00:00: day_invalid" in said
    assert '"balance": "5"' in said


def test_what_is_decided_about_a_dead_letter_is_kept_with_who_and_why(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third, fourth = lay_down(bus_url, "a", "b", "c", "d")
    assert main(["bus", "dead-letters", "replay", first, "--reason", "the schema is fixed", "--by", "li.wei"]) == 0
    assert capsys.readouterr().out == f"{first} of reporting is replayed.\nWhat fails again is listed again.\n"
    assert answered(capsys, "dead-letters", "discard", second, "--reason", "made by a test") == [
        {"event_id": second, "group": "reporting", "status": "discarded"}
    ]
    found = {each["event_id"]: each for each in answered(capsys, "dead-letters", "list", "--all")}
    assert {event_id: each["status"] for event_id, each in found.items()} == {
        first: "replayed",
        second: "discarded",
        third: "open",
        fourth: "open",
    }
    (replayed,), (discarded,) = found[first]["decisions"], found[second]["decisions"]
    assert (replayed["by"], replayed["reason"]) == ("li.wei", "the schema is fixed")
    assert (discarded["by"], discarded["reason"]) == (getpass.getuser(), "made by a test")
    assert refused(capsys, "dead-letters", "replay", first, "--reason", "again") == f"The dead letter {first} was replayed already."
    assert refused(capsys, "dead-letters", "replay", "--all", "--reason", "again") == "Say whose: give --group with --all."
    assert main(["bus", "dead-letters", "replay", "--all", "--group", "reporting", "--reason", "again"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]} == {third, fourth}


def test_of_several_letters_none_is_decided_when_one_is_unknown(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = lay_down(bus_url, "a")
    said = refused(capsys, "dead-letters", "replay", first, "nothing", "--reason", "why not")
    assert said == "There is no dead letter nothing: `regulars bus dead-letters list --all` names them."
    assert [each["event_id"] for each in answered(capsys, "dead-letters", "list")] == [first]


def test_a_decision_needs_a_reason(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = lay_down(bus_url, "a")
    for reason in ([], ["--reason", " "]):
        with pytest.raises(SystemExit) as ended:
            main(["bus", "dead-letters", "discard", first, *reason])
        assert ended.value.code == 2
    assert "--reason" in capsys.readouterr().err


def test_an_event_that_this_release_does_not_know_is_shown_as_it_is(bus_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = Message(TOPIC, 0, 0, uuid7(), uuid7(), "regulars.marketing.v9.Odd", b"\x00\xff", "", AT)
    on_bus(bus_url, lambda bus: DeadLetters(bus, "reporting", HeldClock(AT)).lay_down(message, "unknown"))
    assert answered(capsys, "dead-letters", "show", message.event_id)["event"] == {"base64": "AP8="}


def test_the_bus_is_the_running_installations_unless_the_environment_names_one(
    bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BUS_URL")
    said = refused(capsys, "topics", "--var", str(tmp_path))
    assert said == f"{tmp_path / 'up.json'} names no bus: start the system with `make up`, or set BUS_URL."
    (tmp_path / "up.json").write_text(json.dumps({"bus": {"BUS_URL": bus_url}}))
    assert len(answered(capsys, "topics", "--var", str(tmp_path))) == 2


def test_a_bus_that_is_away_or_is_none_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BUS_URL", "postgresql://nobody@127.0.0.1:9/bus")
    assert refused(capsys, "topics")
    monkeypatch.setenv("BUS_URL", "amqp://somewhere")
    assert refused(capsys, "topics") == "BUS_URL must begin with postgresql:// or kafka://."


def test_a_reader_that_goes_away_is_no_fault(bus_url: str) -> None:
    lay_down(bus_url, *["a"] * 3)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "regulars_cli.main", "bus", "dead-letters", "list"],
            check=False,
            stdout=gone,
            stderr=subprocess.PIPE,
            env=os.environ | {"BUS_URL": bus_url},
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (141, b"")
