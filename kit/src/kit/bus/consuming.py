"""Consuming: a group's part of its topics in batches, the effect first and the offsets afterwards.

A crash between any two steps has what was not committed delivered again: an effect happens exactly once when it keeps the ids beside it
(`kit.bus.inbox`) or writes facts that replace themselves. A handler says by what it raises how a batch ended:

    returns       all of it took effect
    Poison        one event can never be handled: it becomes a dead letter, the others are handled without it
    RetryLater    nothing took effect, and the same will do later: the partition waits, in order; the other partitions go on
    anything else the process ends, is started again, and is given the same again
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from kit.bus.dead_letters import REPLAYED, DeadLetters, decision_in
from kit.bus.interface import Bus, BusUnavailable, Message, PartitionsLost, Subscription, TopicPartition
from kit.clock import Clock
from kit.metrics import (
    CONSUMER_BATCH_DURATION,
    CONSUMER_BATCH_SIZE,
    CONSUMER_BUS_AWAY,
    CONSUMER_DELAY,
    CONSUMER_LAG,
    CONSUMER_MESSAGES,
    DEAD_LETTERS_OPEN,
    DONE,
    GROUP,
    TOPIC,
)
from kit.telemetry import TraceContext, is_sampled, request_context
from kit.tracing import recorder
from kit.waiting import wait_at_most

Handler = Callable[[Sequence[Message]], Awaitable[None]]

MAX_OPEN_DEAD_LETTERS = 100
# How long a fetch waits for news, and so how long a consumer takes to notice that it shall stop.
WAIT_SECONDS = 0.5
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_OUTAGE_PAUSE_SECONDS = 2.0
# How often the bus is asked how far the group is behind.
LAG_SECONDS = 10.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Poison(Exception):
    """The event can never be handled. `code` is a word for the reason and quotes nothing of the event."""

    def __init__(self, event_id: str, code: str) -> None:
        super().__init__(f"{event_id}: {code}")
        self.event_id = event_id
        self.code = code


class RetryLater(Exception):
    """Nothing of the batch took effect, for the reason that `code` names, and later it may."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class TooManyDeadLetters(Exception):
    """A group has as many dead letters open as it may: not a few odd events, but something that a person must look at."""

    def __init__(self, group: str, limit: int) -> None:
        super().__init__(
            f"The group {group} has {limit} dead letters open and stops at the next; replay or discard them, then start it again."
        )


class _Stopped(Exception):
    """It was asked to stop while the bus was away."""


async def consume(
    bus: Bus,
    group: str,
    topics: Sequence[str],
    handler: Handler,
    *,
    stop: asyncio.Event,
    clock: Clock,
    together: bool = False,
    max_messages: int = 2000,
    gather_seconds: float = 0.0,
    max_dead_letters: int = MAX_OPEN_DEAD_LETTERS,
) -> None:
    """Handles what comes in the topics until `stop` is set; the batch under way is finished.

    `handler` is given messages of one partition in order, or with `together` those of all partitions that came at once, each partition's
    in order; at most `max_messages`, gathered for up to `gather_seconds`. While the bus is away it waits for it.

    Raises:
        TooManyDeadLetters: one more event is poison than may wait for an operator. Nothing of it is lost: it is delivered again.
        Exception: whatever the handler raised that has no name here.
    """
    letters = DeadLetters(bus, group, clock)
    consumer = _Consumer(bus, letters, handler, stop, together, max_messages, gather_seconds, max_dead_letters)
    GROUP.declare([group])
    TOPIC.declare(topics)
    CONSUMER_MESSAGES.start([group], topics, DONE.listed)
    # Without it the first batch, which is the late one after an outage, would be no increase.
    CONSUMER_DELAY.start([group])
    watching: asyncio.Task[None] | None = None
    try:
        await consumer.until_it_answers(lambda: bus.create_topics([letters.spec()]))
        watching = asyncio.create_task(_watch(bus, DeadLetters(bus, group, clock), topics))
        await consumer.run([*topics, letters.source.topic])
    except _Stopped:
        _log.info("stopped while the bus was away", extra={"group": group})
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])


async def _watch(bus: Bus, letters: DeadLetters, topics: Sequence[str]) -> None:
    """Says how far the group is behind, and how many of its dead letters are open. `letters` are its own: the consumer's are in use."""
    group = letters.group
    while True:
        try:
            behind = dict.fromkeys(topics, 0)
            for lag in await bus.lag(group):
                if lag.source.topic in behind:
                    behind[lag.source.topic] += lag.messages
            for topic, messages in behind.items():
                CONSUMER_LAG.of(group, topic).set(messages)
            await letters.refresh()
            DEAD_LETTERS_OPEN.of(group).set(len(letters.open()))
        except BusUnavailable:
            pass  # the consumer says so
        except Exception:  # noqa: BLE001  # consuming does not end because it could not be measured
            _log.exception("the group's lag could not be read", extra={"group": group})
        await asyncio.sleep(LAG_SECONDS)


@dataclass(slots=True)
class _Consumer:
    bus: Bus
    letters: DeadLetters
    handler: Handler
    stop: asyncio.Event
    together: bool
    max_messages: int
    gather_seconds: float
    max_dead_letters: int
    # Of the partitions that wait: when each goes on (by the loop's clock, which never jumps), and how often it had to wait so far.
    resume_at: dict[TopicPartition, float] = field(default_factory=dict)
    attempts: dict[TopicPartition, int] = field(default_factory=dict)
    # The noting of the last batch's offsets, which goes on while the next batch is done.
    committing: asyncio.Task[None] | None = None

    async def run(self, topics: Sequence[str]) -> None:
        async with AsyncExitStack() as stack:
            group = self.letters.group
            subscription = await self.until_it_answers(lambda: stack.enter_async_context(self.bus.subscribe(group, topics)))
            try:
                while not self.stop.is_set():
                    self._resume_due(subscription)
                    fetched = await self._gather(subscription)
                    if fetched:
                        await self._do(subscription, fetched)
            finally:
                await self._committed()

    async def until_it_answers(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Asks the bus until it answers; said once when it does not, and once when it does again."""
        pause, asked = FIRST_PAUSE_SECONDS, 0
        while True:
            try:
                answer = await ask()
            except BusUnavailable as away:
                CONSUMER_BUS_AWAY.of(self.letters.group).set(1)
                if not asked:
                    about = {"group": self.letters.group, "error": type(away.__cause__ or away).__name__}
                    _log.warning("the bus is away; consuming waits", extra=about)
                asked += 1
                await wait_at_most(self.stop, pause)
                if self.stop.is_set():
                    raise _Stopped from None
                pause = min(pause * 2, LONGEST_OUTAGE_PAUSE_SECONDS)
            else:
                CONSUMER_BUS_AWAY.of(self.letters.group).set(0)
                if asked:
                    _log.info("the bus is back; consuming goes on", extra={"group": self.letters.group, "asked": asked})
                return answer

    def _resume_due(self, subscription: Subscription) -> None:
        now = asyncio.get_running_loop().time()
        for source in [source for source, at in self.resume_at.items() if at <= now]:
            del self.resume_at[source]
            subscription.resume(source)

    async def _gather(self, subscription: Subscription) -> dict[TopicPartition, list[Message]]:
        """What comes next, gathered for a while where that is asked for."""
        clock = asyncio.get_running_loop().time
        wait = WAIT_SECONDS
        if self.resume_at:
            wait = min(wait, max(0.0, min(self.resume_at.values()) - clock()))
        gathered: dict[TopicPartition, list[Message]] = {}
        count, until = 0, 0.0
        while True:
            room, seconds = self.max_messages - count, wait
            fetched = await self.until_it_answers(lambda: subscription.fetch(room, seconds))  # noqa: B023  # called within the turn
            for source, messages in fetched.items():
                gathered.setdefault(source, []).extend(messages)
                count += len(messages)
            if count == 0:
                return gathered
            if until == 0.0:
                until = clock() + self.gather_seconds
            wait = until - clock()
            if wait <= 0 or count >= self.max_messages or self.stop.is_set():
                return gathered

    async def _do(self, subscription: Subscription, fetched: dict[TopicPartition, list[Message]]) -> None:
        """Handles what was fetched and commits what took effect, also of the partitions before one that ends the process."""
        decisions = fetched.pop(self.letters.source, None)
        parts = [fetched] if self.together and fetched else [{source: messages} for source, messages in fetched.items()]
        done: dict[TopicPartition, int] = {}
        try:
            for part in parts:
                messages = [message for messages in part.values() for message in messages]
                begun = perf_counter()
                retry = await self._handle(messages)
                CONSUMER_BATCH_SIZE.of(self.letters.group).observe(len(messages))
                CONSUMER_BATCH_DURATION.of(self.letters.group).observe(perf_counter() - begun)
                if retry is None:
                    done |= {source: messages[-1].offset + 1 for source, messages in part.items()}
                    self._went_well(part)
                else:
                    await self._postpone(subscription, {source: messages[0].offset for source, messages in part.items()}, retry)
            for message in decisions or ():
                retry = await self._replay(message)
                if retry is not None:
                    await self._postpone(subscription, {message.source: message.offset}, retry)
                    break
                done[message.source] = message.offset + 1
                self._went_well([message.source])
        finally:
            if done:
                # In their order: one after the other.
                await self._committed()
                self.committing = asyncio.create_task(self._commit(subscription, done))

    async def _handle(self, messages: Sequence[Message], *, again: bool = False) -> str | None:
        """Has all of it handled but what is poison; returns the code for which it must be tried later, if it must.

        `again`: an operator's replay, whose delay says nothing of the consumer.
        """
        while messages:
            begun = perf_counter()
            try:
                await self.handler(messages)
            except RetryLater as later:
                self._count(messages, "retried")
                self._record(messages, perf_counter() - begun, later.code)
                return later.code
            except Poison as poison:
                poisoned = [message for message in messages if message.event_id == poison.event_id]
                if not poisoned:
                    raise
                await self._lay_down(poisoned[0], poison.code)
                messages = [message for message in messages if message.event_id != poison.event_id]
            else:
                self._count(messages, "done")
                self._record(messages, perf_counter() - begun)
                if not again:
                    now = self.letters.clock.now()
                    delays = [(now - message.recorded_at).total_seconds() for message in messages]
                    CONSUMER_DELAY.of(self.letters.group).observe_many(delays)
                break
        return None

    def _count(self, messages: Sequence[Message], outcome: str) -> None:
        for topic, number in Counter(message.topic for message in messages).items():
            CONSUMER_MESSAGES.of(self.letters.group, topic, outcome).inc(number)

    def _record(self, messages: Sequence[Message], seconds: float, fault: str = "") -> None:
        """Records a span for each message of a trace that is recorded."""
        spans = recorder()
        if spans is None:
            return
        for message in messages:
            above = TraceContext.parse(message.traceparent) if is_sampled(message.traceparent) else None
            if above is None:
                continue
            said: dict[str, str | int | bool] = {
                "messaging.operation.type": "process",
                "messaging.consumer.group.name": self.letters.group,
                "messaging.destination.name": message.topic,
                "messaging.destination.partition.id": str(message.partition),
                "messaging.message.id": message.event_id,
                "messaging.batch.message_count": len(messages),
            }
            spans.record(f"process {message.topic}", "consumer", above.child(), above.span_id, seconds, said, fault=fault)

    async def _lay_down(self, message: Message, code: str) -> None:
        """Makes the event a dead letter, unless it is one already or was discarded, as after a crash before its offset was committed."""
        letters = self.letters
        await self.until_it_answers(letters.refresh)
        known = letters.all().get(message.event_id)
        if known is not None and known.status != "replayed":
            return
        about = {"group": letters.group, "topic": message.topic, "type": message.type, "event_id": message.event_id, "code": code}
        open_letters = len(letters.open())
        if open_letters >= self.max_dead_letters:
            _log.error("too many dead letters are open: the consumer stops", extra=about | {"open": open_letters})
            raise TooManyDeadLetters(letters.group, self.max_dead_letters)
        await self.until_it_answers(lambda: letters.lay_down(message, code))
        self._count([message], "dead_letter")
        self._record([message], 0.0, code)
        with request_context(TraceContext.parse(message.traceparent), ""):
            _log.error("an event became a dead letter", extra=about | {"open": open_letters + 1})

    async def _replay(self, message: Message) -> str | None:
        """Gives the event of a letter to the handler again when a message of the dead letters' topic says so."""
        if message.type != REPLAYED:
            return None
        decision = decision_in(message)
        await self.until_it_answers(self.letters.refresh)
        known = self.letters.all().get(decision.event_id)
        if known is None:
            return None
        retry = await self._handle([known.letter.message()], again=True)
        if retry is None:
            await self.until_it_answers(self.letters.refresh)
            about = {"group": self.letters.group, "event_id": decision.event_id}
            _log.info("a dead letter was replayed", extra=about | {"is_open_again": self.letters.is_open(decision.event_id)})
        return retry

    async def _postpone(self, subscription: Subscription, begin: Mapping[TopicPartition, int], code: str) -> None:
        """Has the partitions wait, the longer the more often, and begin again where they were."""
        number = 1 + max(self.attempts.get(source, 0) for source in begin)
        seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(number - 1, 20), LONGEST_PAUSE_SECONDS)
        seconds *= random.uniform(0.8, 1.0)  # noqa: S311  # so that partitions that failed together do not come back together
        for source, offset in begin.items():
            subscription.pause(source)
            await subscription.seek(source, offset)
            self.attempts[source] = number
            self.resume_at[source] = asyncio.get_running_loop().time() + seconds
        partitions = sorted(f"{source.topic}/{source.partition}" for source in begin)
        about = {"group": self.letters.group, "partitions": partitions, "code": code, "attempt": number}
        _log.warning("tried again later", extra=about | {"seconds": round(seconds, 1)})

    def _went_well(self, sources: Iterable[TopicPartition]) -> None:
        for source in sources:
            self.attempts.pop(source, None)

    async def _committed(self) -> None:
        """Returns when no commit is under way."""
        committing, self.committing = self.committing, None
        if committing is not None:
            await committing

    async def _commit(self, subscription: Subscription, offsets: Mapping[TopicPartition, int]) -> None:
        try:
            await self.until_it_answers(lambda: subscription.commit(offsets))
        except PartitionsLost as lost:
            # Whoever has them now is given the same again, and finds that it took effect.
            _log.info("partitions were given to another process", extra={"group": self.letters.group, "lost": len(lost.lost)})
