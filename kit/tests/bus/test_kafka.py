"""What is particular to the bus over Kafka; what both backends do is in the behaviour suite."""

import asyncio
import contextlib
import ipaddress
import signal
import ssl
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupLoadInProgressError, KafkaConnectionError
from aiokafka.protocol.admin import DescribeGroupsRequest, DescribeGroupsResponse_v0
from aiokafka.protocol.api import Request, Response
from aiokafka.protocol.commit import OffsetFetchRequest, OffsetFetchResponse_v3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import Bus, BusUnavailable, EventTooLarge, Message, PartitionsLost, Subscription, TopicPartition, TopicSpec
from kit.bus.kafka import KafkaBus, client, publishing
from kit.bus.kafka import subscription as subscriptions
from kit.bus.kafka.client import client_options
from kit.bus.kafka.releases import level_in, release_of
from kit.bus.kafka.subscription import KafkaSubscription
from kit.ids import uuid7
from kit.outbox import Event
from kit.settings import SettingsInvalid, load
from regulars_cli.up.kafka import LocalKafka
from tests.bus.guarded import GuardedKafka, signing_in

PARTITIONS = 4
TYPE = "regulars.test.v1.Counted"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
AT = datetime(2026, 3, 1, 12, 0, 5, 678901, tzinfo=UTC)
# A process on the other end of the test, which fetches, says so, and commits when it is told to.
OTHER_PROCESS = """
import asyncio, sys
from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import PartitionsLost
from kit.settings import load

async def run():
    settings = load(BusSettings, {"BUS_URL": sys.argv[1]})
    async with connect(settings, client_name="other") as bus, bus.subscribe(sys.argv[2], [sys.argv[3]]) as subscription:
        batch = await subscription.fetch(1000, 30)
        print(sum(map(len, batch.values())), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        try:
            await subscription.commit({source: messages[-1].offset + 1 for source, messages in batch.items()})
        except PartitionsLost as lost:
            print(len(lost.lost), flush=True)

asyncio.run(run())
"""


@pytest.fixture
async def bus(kafka_bootstrap: str) -> AsyncIterator[Bus]:
    async with connected(kafka_bootstrap) as made:
        yield made


@pytest.fixture
async def topic(bus: Bus) -> str:
    return await new_topic(bus)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalKafka]:
    """A broker of the test's own, to be killed."""
    with LocalKafka(tmp_path / "kafka") as started:
        yield started


def connected(bootstrap: str, name: str = "test") -> Bus:
    return connect(load(BusSettings, {"BUS_URL": f"kafka://{bootstrap}"}), client_name=name)


async def new_topic(bus: Bus) -> str:
    name = f"test.t{uuid.uuid4().hex}.v1"
    await bus.create_topics([TopicSpec(name, PARTITIONS, timedelta(days=30))])
    return name


def event(topic: str, key: str = "", number: int = 0) -> Event:
    return Event(uuid7(), topic, key or uuid7(), TYPE, str(number).encode(), TRACE, AT)


def following(batch: Mapping[TopicPartition, Sequence[Message]]) -> dict[TopicPartition, int]:
    """The offsets that commit a batch."""
    return {source: messages[-1].offset + 1 for source, messages in batch.items()}


def flat(batches: Iterable[Mapping[TopicPartition, Sequence[Message]]]) -> list[Message]:
    return [message for batch in batches for messages in batch.values() for message in messages]


async def take(subscription: Subscription, wanted: int) -> list[Message]:
    """Fetches and commits until there are `wanted` messages of different ids."""
    found: list[Message] = []
    async with asyncio.timeout(240):
        while len({message.event_id for message in found}) < wanted:
            try:
                batch = await subscription.fetch(1000, 1)
                await subscription.commit(following(batch))
            except (BusUnavailable, PartitionsLost):
                continue
            found += flat([batch])
    return found


async def fetch_for_ever(subscription: Subscription) -> None:
    async with asyncio.timeout(60):
        while True:
            await subscription.fetch(10, 0.1)


async def read(bus: Bus, topic: str) -> list[Message]:
    return [message async for batch in bus.read(topic) for message in batch]


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            # Others run at once, and again when something came in from the network.
            await asyncio.sleep(0)


async def until_published(bus: Bus, events: Sequence[Event]) -> int:
    """As a relay does: the same again until it is in; how often it was not."""
    failures = 0
    async with asyncio.timeout(90):
        while True:
            try:
                await bus.publish(events)
            except BusUnavailable:
                failures += 1
                await asyncio.sleep(0)
            else:
                return failures


def assert_in_order(messages: Sequence[Message], batches: Sequence[Sequence[Event]]) -> None:
    """Every event is there, those of a key in order; one that is there twice stands before what was published after it was in."""
    batch_of = {event.event_id: number for number, batch in enumerate(batches) for event in batch}
    first: dict[str, list[int]] = defaultdict(list)
    latest_batch: dict[str, int] = {}
    seen: set[str] = set()
    for message in messages:
        batch = batch_of[message.event_id]
        assert batch >= latest_batch.get(message.key, 0)
        latest_batch[message.key] = batch
        if message.event_id not in seen:
            seen.add(message.event_id)
            first[message.key].append(int(message.payload))
    assert seen == batch_of.keys()
    for numbers in first.values():
        assert numbers == sorted(numbers)


async def test_an_event_is_a_cloud_event_in_binary_mode(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    sent = event(topic)
    await bus.publish([sent])
    async with AIOKafkaConsumer(topic, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest") as consumer:
        record = await consumer.getone()
    assert (record.key, record.value) == (sent.key.encode(), sent.payload)
    assert record.headers == (
        ("ce_specversion", b"1.0"),
        ("ce_type", TYPE.encode()),
        ("ce_source", b"/regulars/test"),
        ("content-type", b"application/protobuf"),
        ("ce_id", sent.event_id.encode()),
        ("ce_time", b"2026-03-01T12:00:05.678901+00:00"),
        ("traceparent", TRACE.encode()),
    )


@pytest.mark.parametrize(
    "tagged, release",
    [
        (b"\2\x11metadata.version\0\7\0\x1b\0", "4.1"),
        (b"\3\x0egroup.version\0\1\0\1\0\x11metadata.version\0\1\0\x15\0", "3.9"),
        (b"\2\x11metadata.version\0\7\0\x63\0", "4.2 or later"),
        (b"\2\x0egroup.version\0\1\0\1\0", ""),
        (b"\1", ""),
        (None, ""),
    ],
)
def test_a_release_is_known_by_the_newest_metadata_that_a_broker_supports(tagged: bytes | None, release: str) -> None:
    answer = SimpleNamespace(tags={} if tagged is None else {0: tagged})
    assert release_of(level_in(answer)) == release


async def test_a_record_of_somebody_else_arrives_as_far_as_it_says_what_it_is(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
        for id_header in ([], [("ce_id", b"")], [("ce_id", b"\xff no id of ours")]):
            await producer.send_and_wait(
                topic, b"?", partition=0, headers=[("ce_time", b"\xff"), *id_header], timestamp_ms=1_700_000_000_000
            )
    found = await read(bus, topic)
    for message in found:
        assert (message.key, message.type, message.payload, message.traceparent) == ("", "", b"?", "")
        assert message.recorded_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    # What becomes of one of them must not be taken for what became of another: each has an id, the same whenever it is read.
    assert len({uuid.UUID(message.event_id) for message in found}) == 3
    assert [message.event_id for message in await read(bus, topic)] == [message.event_id for message in found]


async def test_events_larger_than_a_batch_together_stay_in_order(bus: Bus, topic: str) -> None:
    key = uuid7()
    events = [Event(uuid7(), topic, key, TYPE, b"%d " % number + bytes(300_000), TRACE, AT) for number in range(12)]
    await bus.publish(events)
    assert [int(message.payload.split()[0]) for message in await read(bus, topic)] == list(range(12))


async def test_an_event_that_no_broker_takes_is_named_and_holds_up_only_itself(bus: Bus, topic: str) -> None:
    key = uuid7()
    too_large = Event(uuid7(), topic, key, TYPE, bytes(9_000_000), TRACE, AT)
    with pytest.raises(EventTooLarge) as refused:
        await bus.publish([event(topic, key), too_large, event(topic, key)])
    assert (refused.value.event_id, refused.value.topic, refused.value.size_bytes) == (too_large.event_id, topic, 9_000_000)
    await bus.publish([event(topic, key)])
    assert too_large.event_id not in {message.event_id for message in await read(bus, topic)}


async def test_an_event_larger_than_most_brokers_take_arrives_in_its_place(bus: Bus, topic: str) -> None:
    key = uuid7()
    events = [event(topic, key), Event(uuid7(), topic, key, TYPE, bytes(6_000_000), TRACE, AT), event(topic, key)]
    await bus.publish(events)
    assert [message.event_id for message in await read(bus, topic)] == [sent.event_id for sent in events]


async def test_the_order_of_a_key_holds_over_kills_of_the_broker(broker: LocalKafka) -> None:
    keys = [uuid7() for _ in range(10)]
    async with connected(broker.bootstrap) as bus:
        topic = await new_topic(bus)
        batches = [[event(topic, keys[n % 10], n) for n in range(100 * b, 100 * (b + 1))] for b in range(60)]
        reached = asyncio.Event()

        async def publish() -> None:
            for number, batch in enumerate(batches):
                if number in (15, 35):
                    reached.set()
                await until_published(bus, batch)

        publishing_all = asyncio.create_task(publish())
        for _ in range(2):
            await reached.wait()
            reached.clear()
            # Without a warning, in the middle of what is being sent.
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
        await publishing_all
        messages = await read(bus, topic)
    assert_in_order(messages, batches)
    # The producer is idempotent: what it tried again is there once.
    assert len(messages) == sum(map(len, batches))


async def test_a_call_that_took_too_long_is_repeated_without_a_second_copy(broker: LocalKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "CALL_SECONDS", 0.5)
    async with connected(broker.bootstrap) as bus:
        topic, key = await new_topic(bus), uuid7()
        await until_published(bus, [event(topic, key, 0)])
        process = psutil.Process(broker.pid)
        first, second = [event(topic, key, 1)], [event(topic, key, 2)]
        process.suspend()
        try:
            for events in (first, first, second):
                with pytest.raises(BusUnavailable, match="publish"):
                    await bus.publish(events)
        finally:
            process.resume()
        await until_published(bus, first)
        await until_published(bus, second)
        assert [int(message.payload) for message in await read(bus, topic)] == [0, 1, 2]


async def test_a_broker_that_is_away_is_said_and_its_return_is_noticed(broker: LocalKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(subscriptions, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(subscriptions, "_JOIN_SECONDS", 5)
    async with connected(broker.bootstrap) as bus:
        topic = await new_topic(bus)
        async with bus.subscribe("readers", [topic]) as subscription:
            await until_published(bus, [event(topic)])
            assert len(await take(subscription, 1)) == 1
            await asyncio.to_thread(broker.stop)
            for ask in (lambda: bus.publish([event(topic)]), bus.topics, lambda: bus.lag("readers"), bus.groups):
                with pytest.raises(BusUnavailable, match=r"^Kafka, [a-z ]+: \w+\.$"):
                    await ask()
            with pytest.raises(BusUnavailable, match=r"^Kafka, fetch: .+\.$"):
                await fetch_for_ever(subscription)
            with pytest.raises(BusUnavailable, match=r"^Kafka, "):
                async with connected(broker.bootstrap):
                    pass
            await asyncio.to_thread(broker.start)
            await until_published(bus, [event(topic)])
            # The event of the call that failed may have got in as well.
            assert len(await take(subscription, 1)) in (1, 2)


@pytest.mark.timeout(300)
async def test_a_consumer_goes_on_over_kills_of_the_broker_without_loss_and_in_order(broker: LocalKafka) -> None:
    keys = [uuid7() for _ in range(10)]
    async with connected(broker.bootstrap) as bus:
        topic = await new_topic(bus)
        batches = [[event(topic, keys[n % 10], n) for n in range(100 * b, 100 * (b + 1))] for b in range(20)]
        async with bus.subscribe("readers", [topic]) as subscription:
            taking = asyncio.create_task(take(subscription, 2000))
            for number, batch in enumerate(batches):
                await until_published(bus, batch)
                if number in (5, 12):
                    await asyncio.to_thread(broker.kill)
                    await asyncio.to_thread(broker.start)
            taken = await taking
            assert sum(lag.messages for lag in await bus.lag("readers")) == 0
    numbers: dict[str, list[int]] = defaultdict(list)
    for message in taken:
        if int(message.payload) not in numbers[message.key]:
            numbers[message.key].append(int(message.payload))
    assert all(found == sorted(found) and len(found) == 200 for found in numbers.values())


async def test_a_batch_in_hand_is_committed_before_its_partitions_go_to_another(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    await bus.publish([event(topic) for _ in range(200)])
    async with bus.subscribe("readers", [topic]) as first, connected(kafka_bootstrap, "second") as other:
        batch: dict[TopicPartition, Sequence[Message]] = {}
        while len(flat([batch])) < 200:
            for source, messages in (await first.fetch(1000, 1)).items():
                batch[source] = [*batch.get(source, ()), *messages]

        joined = asyncio.Event()

        async def second() -> frozenset[TopicPartition]:
            async with other.subscribe("readers", [topic]) as subscription:
                joined.set()
                assert not await subscription.fetch(1000, 0.5)
                return subscription.assigned()

        joining = asyncio.create_task(second())
        # The rebalance has begun: nothing more is given out, and what was is still this process's.
        assert isinstance(first, KafkaSubscription)
        await until(lambda: not first._may_fetch.is_set())
        assert not joined.is_set()
        await first.commit(following(batch))
        assert len(await joining) == 2
        assert sum(lag.messages for lag in await bus.lag("readers")) == 0


async def test_who_takes_longer_than_a_rebalance_waits_may_not_commit_and_another_reads_it(
    kafka_bootstrap: str, bus: Bus, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_GRACE_SECONDS", 0.1)
    await bus.publish([event(topic) for _ in range(200)])
    async with bus.subscribe("readers", [topic]) as first, connected(kafka_bootstrap, "second") as other:
        batch = await first.fetch(100, 10)
        async with other.subscribe("readers", [topic]) as second:
            await until(lambda: len(first.assigned()) == len(second.assigned()) == 2)
            assert not first.assigned() & second.assigned()
            with pytest.raises(PartitionsLost) as refused:
                await first.commit(following(batch))
            # Also those that it was given again: they are read anew, and committed then.
            assert refused.value.lost == batch.keys()
            for source, messages in batch.items():
                await first.seek(source, messages[-1].offset + 1)
                first.pause(source)
                first.resume(source)
            found: set[str] = set()
            async with asyncio.timeout(60):
                while len(found) < 200:
                    for subscription in (first, second):
                        batch = await subscription.fetch(1000, 0.1)
                        await subscription.commit(following(batch))
                        found |= {message.event_id for message in flat([batch])}
            assert sum(lag.messages for lag in await bus.lag("readers")) == 0


async def test_a_process_that_was_frozen_may_not_commit_what_another_reads_now(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    await bus.publish([event(topic) for _ in range(50)])
    async with process(f"kafka://{kafka_bootstrap}", "readers-frozen", topic) as frozen:
        assert frozen.stdin is not None
        assert frozen.stdout is not None
        held = int(await frozen.stdout.readline())
        assert held > 0
        frozen.send_signal(signal.SIGSTOP)
        async with bus.subscribe("readers-frozen", [topic]) as subscription:
            await take(subscription, 50)
            before = await bus.lag("readers-frozen")
            frozen.send_signal(signal.SIGCONT)
            frozen.stdin.write(b"commit\n")
            await frozen.stdin.drain()
            assert int(await frozen.stdout.readline()) > 0
            after = await bus.lag("readers-frozen")
            assert [lag.committed for lag in after] == [lag.committed for lag in before]


async def test_a_dead_process_is_replaced_within_seconds(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    await bus.publish([event(topic) for _ in range(50)])
    async with process(f"kafka://{kafka_bootstrap}", "readers-dead", topic) as dead:
        assert dead.stdout is not None
        assert int(await dead.stdout.readline()) > 0
        dead.kill()
        async with asyncio.timeout(12), bus.subscribe("readers-dead", [topic]) as subscription:
            assert len({message.event_id for message in await take(subscription, 50)}) == 50


async def test_groups_of_one_process_keep_their_partitions_apart(bus: Bus, topic: str) -> None:
    more = await new_topic(bus)
    async with bus.subscribe("readers-1", [topic]) as first, bus.subscribe("readers-2", [topic, more]) as second:
        assert len(first.assigned()) == PARTITIONS
        assert len(second.assigned()) == 2 * PARTITIONS


async def test_most_partitions_stay_where_they_are_when_another_comes(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    async with (
        bus.subscribe("readers", [topic]) as first,
        connected(kafka_bootstrap, "second") as other,
        other.subscribe("readers", [topic]) as second,
    ):
        await until(lambda: len(first.assigned()) == len(second.assigned()) == 2)
        kept = first.assigned()
        async with other.subscribe("readers", [topic]) as third:
            await until(lambda: {len(first.assigned()), len(second.assigned()), len(third.assigned())} == {1, 2})
            assert len(kept & first.assigned()) == len(first.assigned())


async def test_a_coordinator_that_still_loads_is_asked_again(bus: Bus, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after a restart it answers that it does not know yet: not that nothing was committed, and that nobody reads."""
    group, source = f"g{uuid.uuid4().hex}", TopicPartition(topic, 0)
    await bus.publish([event(topic) for _ in range(20)])
    await bus.set_offsets(group, {source: 1})
    loading: dict[type, Response] = {
        OffsetFetchRequest: OffsetFetchResponse_v3(throttle_time_ms=0, topics=[], error_code=GroupLoadInProgressError.errno),
        DescribeGroupsRequest: DescribeGroupsResponse_v0(groups=[(GroupLoadInProgressError.errno, group, "", "", "", [])]),
    }
    send = AIOKafkaAdminClient._send_request

    async def answer(self: AIOKafkaAdminClient, request: Request, node_id: int | None = None) -> Response:
        return loading.pop(type(request), None) or await send(self, request, node_id)

    monkeypatch.setattr(AIOKafkaAdminClient, "_send_request", answer)
    assert {lag.source: lag.committed for lag in await bus.lag(group)} == {source: 1}
    assert loading == {}


async def test_a_changed_retention_leaves_a_topics_other_settings(kafka_bootstrap: str, bus: Bus, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    try:
        async with asyncio.timeout(30):
            # An operator's: the request replaces all that was given to the topic.
            given = {"retention.ms": str(30 * 86_400_000), "max.message.bytes": "2000000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, given)])
            asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": ""})]

            async def is_given() -> bool:
                return bool((await admin.describe_configs(asked))[0].resources[0][4][0][1] == "2000000")

            await until(is_given)
            spec = TopicSpec(topic, PARTITIONS, timedelta(days=7))
            await bus.create_topics([spec])
            await until(lambda: is_there(bus, spec))
            assert await is_given()
    finally:
        await admin.close()


async def is_there(bus: Bus, spec: TopicSpec) -> bool:
    return spec in await bus.topics({spec.name})


async def test_a_broker_that_asks_for_tls_and_a_password_is_served(tmp_path: Path) -> None:
    ca, keystore = certificates(tmp_path)
    settings = signing_in("SASL_SSL", {"broker": "b", "regulars": "s3cret"}) | {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca),
    }
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    environment = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "regulars",
        "KAFKA_SASL_PASSWORD_FILE": str(password),
        "KAFKA_SSL_CA_FILE": str(ca),
    }
    with GuardedKafka(tmp_path / "kafka", settings=settings) as broker:
        url = {"BUS_URL": f"kafka://{broker.bootstrap}"}
        async with asyncio.timeout(60):
            while True:
                try:
                    async with connect(load(BusSettings, url | environment), client_name="test") as bus:
                        topic = await new_topic(bus)
                        await bus.publish([event(topic)])
                        assert len(await read(bus, topic)) == 1
                        break
                except BusUnavailable:
                    # It listens a moment before it knows itself.
                    continue
        password.write_text("another")
        with pytest.raises(BusUnavailable) as refused:
            await connect(load(BusSettings, url | environment), client_name="test").__aenter__()
        assert "another" not in str(refused.value)
        with pytest.raises(BusUnavailable):
            await connect(load(BusSettings, url), client_name="test").__aenter__()


def test_settings_become_what_the_client_asks_for(tmp_path: Path) -> None:
    ca, _ = certificates(tmp_path)
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    environment = {"BUS_URL": "kafka://a:9092,b:9093/"}
    assert client_options(load(BusSettings, environment), "me").items() >= {
        "bootstrap_servers": ["a:9092", "b:9093"], "client_id": "me", "security_protocol": "PLAINTEXT"
    }.items()  # fmt: skip
    environment |= {
        "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
        "KAFKA_SASL_MECHANISM": "scram-sha-512",
        "KAFKA_SASL_USERNAME": "regulars",
        "KAFKA_SASL_PASSWORD_FILE": str(password),
        "KAFKA_SSL_CA_FILE": str(ca),
    }
    options = client_options(load(BusSettings, environment), "me")
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("regulars", "s3cret")
    assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname


@pytest.mark.parametrize(
    "environment,fault",
    [
        ({"BUS_URL": "kafka://"}, "BUS_URL must name a broker"),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "KAFKA_SECURITY_PROTOCOL must be one of"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_MECHANISM must be one of"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA_SASL_MECHANISM": "PLAIN"}, "Set KAFKA_SASL_USERNAME and"),
        ({"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CA_FILE": "/nowhere/ca.pem"}, "cannot be used"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(environment: Mapping[str, str], fault: str) -> None:
    with pytest.raises(SettingsInvalid, match=fault):
        KafkaBus(load(BusSettings, {"BUS_URL": "kafka://a:9092", **environment}), "me")


def certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine, as the authority that clients trust, and with its key as brokers want it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    ca, keystore = folder / "ca.pem", folder / "keystore.pem"
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    keystore.write_bytes(private + ca.read_bytes())
    return ca, keystore


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`OTHER_PROCESS`, killed at the end."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OTHER_PROCESS, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.communicate()


async def test_a_client_ends_though_its_connections_never_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a broker that stands still: a consumer of reporting once waited for that for ever, and read nothing more."""

    class Client:
        async def stop(self) -> None:
            raise KafkaConnectionError

    class Connections:
        def __init__(self) -> None:
            self.asked = False

        async def close(self) -> None:
            self.asked = True
            await asyncio.gather(asyncio.get_running_loop().create_future())

    monkeypatch.setattr(client, "CLOSE_SECONDS", 0.05)
    connections = Connections()
    async with asyncio.timeout(5):
        await client.end(Client(), connections)
    assert connections.asked
