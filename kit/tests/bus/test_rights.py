"""On brokers that others use too, with the rights that deploy/helm/examples/strimzi.yaml gives and no others (SEC-05)."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from kit.bus.connecting import BusSettings, connect
from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Bus, BusUnavailable, Message, Subscription, TopicPartition, TopicSpec, TopicUnknown
from kit.bus.kafka.client import client_options
from kit.bus.topics import dead_letters_topic
from kit.clock import SystemClock
from kit.ids import uuid7
from kit.outbox import Event
from kit.settings import load
from tests.bus.guarded import GuardedKafka, signing_in
from tests.bus.world import until

EXAMPLE = Path(__file__).parents[3] / "deploy" / "helm" / "examples" / "strimzi.yaml"
GROUP, OURS = "reporting", "member.test.v1"
# So many that a tenth of a second for each is more than a question may take.
THEIRS = [f"payroll.{number}.v1" for number in range(120)]
DEAD = dead_letters_topic(GROUP)
PASSWORDS = {"broker": "b", "regulars": "s3cret"}
# Kafka's numbers, of its protocol.
RESOURCES = {"topic": 2, "group": 3, "cluster": 4}
PATTERNS = {"literal": 3, "prefix": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10, "IdempotentWrite": 12}
ALLOW = 3


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    settings = signing_in("SASL_PLAINTEXT", PASSWORDS) | {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Controllers sign in by no name here.
        "super.users": "User:broker;User:ANONYMOUS",
    }
    folder = tmp_path_factory.mktemp("guarded")
    for name, password in PASSWORDS.items():
        (folder / name).write_text(password, "utf-8")
    with GuardedKafka(folder / "kafka", settings=settings) as broker:
        asyncio.run(prepare(settings_of(broker, "broker")))
        # Rights are granted by controllers, and known to brokers a moment later.
        asyncio.run(until(lambda: may_use_its_topics(settings_of(broker, "regulars")), "our rights are known"))
        yield broker


def settings_of(broker: GuardedKafka, user: str) -> BusSettings:
    return load(
        BusSettings,
        {
            "BUS_URL": f"kafka://{broker.bootstrap}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "PLAIN",
            "KAFKA_SASL_USERNAME": user,
            "KAFKA_SASL_PASSWORD_FILE": str(broker.data_dir.parent / user),
        },
    )


async def prepare(settings: BusSettings) -> None:
    """What the administrator of the brokers does: our topics, those of another system, and our rights."""

    async def topics_are_there() -> bool:
        try:
            async with connect(settings, client_name="administrator") as bus:
                await bus.create_topics([TopicSpec(name, 4, timedelta(days=30)) for name in (OURS, DEAD, *THEIRS)])
        except BusUnavailable:
            # It listens a moment before it knows itself.
            return False
        return True

    await until(topics_are_there, "the topics are there")
    admin = AIOKafkaAdminClient(**client_options(settings, "administrator"))
    await admin.start()
    try:
        for kind, name, pattern, operation in rights():
            given = CreateAclsRequest(kind, name, pattern, "User:regulars", "*", operation, ALLOW)
            answer = await admin._send_to_controller(given)
            assert [code for code, _ in answer.creation_responses] == [0]
    finally:
        await admin.close()


async def may_use_its_topics(settings: BusSettings) -> bool:
    async with connect(settings, client_name="test") as bus:
        return {spec.name for spec in await bus.topics()} == {OURS, DEAD}


def rights() -> list[tuple[int, str, int, int]]:
    """What the user of the example may do, in Kafka's numbers."""
    [user] = [each for each in yaml.safe_load_all(EXAMPLE.read_text("utf-8")) if each["kind"] == "KafkaUser"]
    return [
        (RESOURCES[of["type"]], of.get("name", "kafka-cluster"), PATTERNS[of.get("patternType", "literal")], OPERATIONS[operation])
        for acl in user["spec"]["authorization"]["acls"]
        for of in (acl["resource"],)
        for operation in acl["operations"]
    ]


@pytest.fixture
def ours(brokers: GuardedKafka) -> Bus:
    """A connection with our rights, not yet open."""
    return connect(settings_of(brokers, "regulars"), client_name="test")


def event(topic: str) -> Event:
    return Event(uuid7(), topic, uuid7(), "regulars.test.v1.Counted", b"1", "", datetime(2026, 3, 1, tzinfo=UTC))


async def taken(subscription: Subscription, count: int) -> dict[TopicPartition, list[Message]]:
    found: dict[TopicPartition, list[Message]] = {}
    while sum(map(len, found.values())) < count:
        for source, messages in (await subscription.fetch(100, 5)).items():
            found.setdefault(source, []).extend(messages)
    return found


async def test_the_rights_of_the_example_are_all_that_is_needed(ours: Bus) -> None:
    async with ours as bus:
        await bus.publish([event(OURS) for _ in range(20)])
        async with bus.subscribe(GROUP, [OURS, DEAD]) as subscription:
            found = await taken(subscription, 20)
            await subscription.commit({source: messages[-1].offset + 1 for source, messages in found.items()})
            assert sum(lag.messages for lag in await bus.lag(GROUP)) == 0
        assert await bus.groups() == [GROUP]
        [first, *_] = found
        await bus.set_offsets(GROUP, {first: 0})
        assert sum(lag.messages for lag in await bus.lag(GROUP)) == len(found[first])
        assert len([message async for batch in bus.read(OURS) for message in batch]) == 20
        letters = DeadLetters(bus, GROUP, SystemClock())
        await letters.refresh()
        assert letters.open() == []
        assert await bus.release()
        # As they are already, by `python -m kit.bus create-topics`.
        await bus.create_topics([TopicSpec(OURS, 4, timedelta(days=30))])


async def test_topics_of_others_are_neither_seen_nor_in_the_way(ours: Bus) -> None:
    async with ours as bus:
        assert {spec.name for spec in await bus.topics()} == {OURS, DEAD}
        assert await bus.topics(THEIRS) == {}
        with pytest.raises(TopicUnknown):
            await bus.publish([event(THEIRS[0])])


async def test_who_may_see_them_all_is_answered_in_time(brokers: GuardedKafka) -> None:
    async with connect(settings_of(brokers, "broker"), client_name="test") as bus:
        assert {spec.name for spec in await bus.topics()} == {OURS, DEAD, *THEIRS}


async def test_what_an_administrator_must_do_is_said(ours: Bus) -> None:
    """A topic more, or another retention, is not ours to make."""
    async with ours as bus:
        for spec in (TopicSpec("member.more.v1", 4, timedelta(days=30)), TopicSpec(OURS, 4, timedelta(days=31))):
            with pytest.raises(BusUnavailable, match="Authorization"):
                await bus.create_topics([spec])
