"""The facts from the bus: events in, rows out, and only then the offsets."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from clickhouse_connect.driver.exceptions import ClickHouseError

from kit.bus.consuming import Poison, RetryLater
from kit.bus.interface import Message
from kit.telemetry import TraceContext, request_context
from reporting.clickhouse import ClickHouse, ClickHouseUnavailable
from reporting.facts.operations import insert_facts
from reporting.facts.rules import KNOWN_TYPES, EventInvalid, Fact, invalid_among, unix_us

log = logging.getLogger(__name__)

GROUP = "reporting"
SALES_TOPIC = "member.sale.v1"
TOPICS = (SALES_TOPIC, "member.points.v1", "member.member.v1")
# A batch is what came in this time: many small inserts cost more than few large ones, and whoever looks at a report waits no longer.
GATHER_SECONDS = 0.3
MAX_MESSAGES = 10_000


def fact_of(message: Message) -> Fact:
    """What a message carries, as facts are made of it."""
    return Fact(message.event_id, message.topic, message.key, message.type, message.payload, unix_us(message.recorded_at))


class FactsHandler:
    """Handles batches of `kit.bus.consuming.consume`. Inserting a batch again changes nothing, so no ids are kept beside it."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._turn = asyncio.Lock()
        self._told_of: frozenset[str] = KNOWN_TYPES

    def held(self) -> AbstractAsyncContextManager[None]:
        """Inside of the block no facts are inserted; what comes meanwhile waits."""
        return self._turn

    async def __call__(self, messages: Sequence[Message]) -> None:
        facts = [fact_of(message) for message in messages]
        try:
            async with self._turn:
                await insert_facts(self._clickhouse, facts)
            if unknown := {fact.type for fact in facts} - self._told_of:
                self._told_of |= unknown
                log.warning("events of types that this release does not know are kept", extra={"types": sorted(unknown)})
            if log.isEnabledFor(logging.DEBUG):
                _tell_each(messages)
        except EventInvalid:
            invalid = await asyncio.to_thread(invalid_among, facts)
            raise Poison(invalid[0].event_id, "not_a_fact") from None
        except ClickHouseUnavailable as error:
            raise RetryLater("clickhouse_unavailable") from error
        except ClickHouseError as error:
            # Also a full disk: nothing is lost, and nobody but an operator can make room.
            log.warning("facts were not inserted", extra={"error": getattr(error, "name", None), "events": len(facts)})
            raise RetryLater("insert_failed") from error


def _tell_each(messages: Sequence[Message]) -> None:
    """Ends in the log what began at a till: a line of the same trace for each event. Too many to be written unless they are asked for."""
    for message in messages:
        with request_context(TraceContext.parse(message.traceparent), ""):
            log.debug("an event is in the facts", extra={"event_id": message.event_id, "topic": message.topic, "type": message.type})
