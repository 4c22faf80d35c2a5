"""How we connect to Kafka, and what its errors mean to callers."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ConsumerStoppedError, KafkaError
from aiokafka.helpers import create_ssl_context

from kit.bus.connecting import KAFKA_SCHEME, BusSettings
from kit.bus.interface import BusUnavailable
from kit.settings import SettingsInvalid

# A request that is not answered by then is given up, with its connection: a cut network does not say so. Longer than a rebalance may
# take, in which the broker holds the answer back.
REQUEST_SECONDS = 15
# How long our own calls take at most, so that they can say that the bus is away.
CALL_SECONDS = 10
CLOSE_SECONDS = 5
# Of aiokafka's producers and consumers, which tell nobody of their tasks.
_BUSY_PARTS = ("_sender", "_message_accumulator", "_fetcher", "_coordinator")
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

# It reports every attempt to reach a broker as an error; our callers say once that the bus is away, and once that it is back.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def client_options(settings: BusSettings, client_name: str) -> dict[str, Any]:
    """What every client is given: where the brokers are, who we are, and how we prove it.

    Raises:
        SettingsInvalid: the settings contradict one another, or a file cannot be read.
    """
    protocol, mechanism = settings.kafka_security_protocol.upper(), settings.kafka_sasl_mechanism.upper()
    brokers = [address for address in settings.bus_url.removeprefix(KAFKA_SCHEME).rstrip("/").split(",") if address]
    options: dict[str, Any] = {
        "bootstrap_servers": brokers,
        "client_id": client_name,
        "security_protocol": protocol,
        "request_timeout_ms": REQUEST_SECONDS * 1000,
        "metadata_max_age_ms": 60_000,
    }
    faults = []
    if not brokers:
        faults.append("BUS_URL must name a broker: kafka://host:port.")
    if protocol not in _PROTOCOLS:
        faults.append(f"KAFKA_SECURITY_PROTOCOL must be one of {', '.join(_PROTOCOLS)}.")
    if protocol.startswith("SASL"):
        if mechanism not in _MECHANISMS:
            faults.append(f"KAFKA_SASL_MECHANISM must be one of {', '.join(_MECHANISMS)}.")
        if not settings.kafka_sasl_username or not settings.kafka_sasl_password_file:
            faults.append("Set KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD_FILE.")
        options |= {"sasl_mechanism": mechanism, "sasl_plain_username": settings.kafka_sasl_username}
    if faults:
        raise SettingsInvalid(faults)
    try:
        if protocol.startswith("SASL"):
            options["sasl_plain_password"] = Path(settings.kafka_sasl_password_file).read_text("utf-8").strip()
        if protocol.endswith("SSL"):
            options["ssl_context"] = create_ssl_context(
                cafile=settings.kafka_ssl_ca_file or None,
                certfile=settings.kafka_ssl_certificate_file or None,
                keyfile=settings.kafka_ssl_key_file or None,
            )
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        raise SettingsInvalid(
            [f"A file that the KAFKA settings name cannot be used{named}: {error.strerror or type(error).__name__}."]
        ) from None
    return options


@contextmanager
def unavailable_as(doing: str) -> Iterator[None]:
    """Whatever keeps Kafka from doing it is raised as `BusUnavailable`, which names the kind of the error and no value."""
    try:
        yield
    except (KafkaError, ConsumerStoppedError, OSError) as error:
        raise BusUnavailable(f"Kafka, {doing}: {type(error).__name__}.") from error


async def end(client: Any, connections: Any) -> None:  # noqa: ANN401  # aiokafka has no types
    """Ends a consumer or a producer and, whatever becomes of that, its connections and tasks.

    A consumer that ends while a broker is away ends its own tasks and takes that for its own end; a producer waits for the broker. Given
    up at that, either leaves tasks and futures behind. Whoever collects the garbage finds them, and that is logged as an error.
    """
    if isinstance(client, AIOKafkaProducer):
        given = client._message_accumulator  # noqa: SLF001  # it tells nobody of its tasks and futures
        for batch in (*chain.from_iterable(given._batches.values()), *given._pending_batches):  # noqa: SLF001
            batch.future.add_done_callback(hear)
    ending = asyncio.create_task(client.stop())
    done, _ = await asyncio.wait([ending], timeout=CLOSE_SECONDS)
    ending.cancel()
    await asyncio.wait([ending])
    if not done or ending.cancelled() or ending.exception():
        # It waits until the broker has taken what was still to be sent, and one that stands still never does.
        closing = asyncio.create_task(connections.close())
        closing.add_done_callback(hear)
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        closing.cancel()
        await asyncio.wait([closing])
        left = _tasks_of(*(getattr(client, part, None) for part in _BUSY_PARTS))
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def forgotten_if_given_up(part: Any) -> Iterator[None]:  # noqa: ANN401  # aiokafka has no types
    """What `part` of a client goes on with after the block gave it up ends unheard: who gave it up has acted on that."""
    try:
        yield
    except BaseException:
        for task in _tasks_of(part):
            task.add_done_callback(hear)
        raise


def hear(done: "asyncio.Future[Any]") -> None:
    """Takes note of how it ended, which would be logged as an error if nobody did."""
    if not done.cancelled():
        done.exception()


def _tasks_of(*parts: Any) -> "list[asyncio.Task[Any]]":  # noqa: ANN401  # aiokafka has no types
    """The tasks that run a method of one of these."""
    frames = {task: getattr(task.get_coro(), "cr_frame", None) for task in asyncio.all_tasks()}
    return [
        task for task, frame in frames.items() if frame is not None and any(frame.f_locals.get("self", frame) is part for part in parts)
    ]
