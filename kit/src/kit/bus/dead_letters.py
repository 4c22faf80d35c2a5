"""Dead letters: the events that a group could not handle, each with the code of its reason, kept until an operator decides.

They are a topic of their own, `dead-letters.<group>.v1`, of one partition, whose messages tell what happened in order: a letter was
laid down, replayed, discarded. What is open follows from reading it from the start, and who decided what, when and why is read there
too. The group's consumers read it beside their topics and give a replayed event to their handler again (`kit.bus.consuming`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from kit.bus.interface import Bus, Message, TopicPartition, TopicSpec
from kit.bus.topics import DEAD_LETTERS_RETENTION, dead_letters_topic
from kit.clock import Clock
from kit.ids import uuid7
from kit.outbox import Event

DEAD_LETTER = "regulars.bus.v1.DeadLetter"
REPLAYED = "regulars.bus.v1.DeadLetterReplayed"
DISCARDED = "regulars.bus.v1.DeadLetterDiscarded"

Status = Literal["open", "replayed", "discarded"]


class DeadLetter(Struct, frozen=True, kw_only=True):
    """An event that could not be handled, whole. `code` names the reason and quotes nothing of the event."""

    event_id: str
    topic: str
    partition: int
    offset: int
    key: str
    type: str
    payload: bytes
    traceparent: str
    recorded_at: datetime
    group: str
    code: str
    failed_at: datetime

    def message(self) -> Message:
        """The event as it was read."""
        return Message(
            self.topic, self.partition, self.offset, self.event_id, self.key, self.type, self.payload, self.traceparent, self.recorded_at
        )


class Decision(Struct, frozen=True, kw_only=True):
    """What an operator decided about a letter."""

    event_id: str
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Letter:
    """Where a dead letter stands: as it was last laid down, and all that was decided about it, in order."""

    letter: DeadLetter
    status: Status = "open"
    decisions: tuple[tuple[Status, Decision], ...] = ()


class NoSuchDeadLetter(Exception):
    """No letter with this id is open in the group."""

    def __init__(self, event_id: str) -> None:
        super().__init__(f"No dead letter {event_id} is open.")


@dataclass(slots=True)
class DeadLetters:
    """The dead letters of one group. What it answers is as of its last `refresh`, which all that writes does first."""

    bus: Bus
    group: str
    clock: Clock
    _letters: dict[str, Letter] = field(default_factory=dict)
    _next_offset: int = 0

    @property
    def source(self) -> TopicPartition:
        """Where they are."""
        return TopicPartition(dead_letters_topic(self.group), 0)

    def spec(self) -> TopicSpec:
        """The topic to create."""
        return TopicSpec(self.source.topic, 1, DEAD_LETTERS_RETENTION)

    async def refresh(self) -> None:
        """Reads what was added since the last time.

        Raises:
            BusUnavailable: what was read so far is kept.
        """
        async for messages in self.bus.read(self.source.topic, {0: self._next_offset}):
            for message in messages:
                self._learn(message)
                self._next_offset = message.offset + 1

    def all(self) -> Mapping[str, Letter]:
        """Every letter by the id of its event, in the order in which they were first laid down."""
        return self._letters

    def open(self) -> Sequence[DeadLetter]:
        """Those that nobody decided about since they were laid down last."""
        return [known.letter for known in self._letters.values() if known.status == "open"]

    def is_open(self, event_id: str) -> bool:
        """Whether a letter waits for a decision."""
        known = self._letters.get(event_id)
        return known is not None and known.status == "open"

    async def lay_down(self, message: Message, code: str) -> DeadLetter:
        """Adds a letter and returns when it is durable.

        Raises:
            BusUnavailable: not known whether it is; again is harmless.
        """
        letter = DeadLetter(
            event_id=message.event_id,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            key=message.key,
            type=message.type,
            payload=message.payload,
            traceparent=message.traceparent,
            recorded_at=message.recorded_at,
            group=self.group,
            code=code,
            failed_at=self.clock.now(),
        )
        await self._publish(DEAD_LETTER, message.event_id, letter, message.traceparent)
        return letter

    async def replay(self, event_id: str, *, by: str, reason: str) -> None:
        """Has the group handle the event again.

        Raises:
            NoSuchDeadLetter: none is open.
            BusUnavailable: not known whether it will be.
        """
        await self._decide(REPLAYED, event_id, by, reason)

    async def discard(self, event_id: str, *, by: str, reason: str) -> None:
        """Decides that the event shall have no effect.

        Raises:
            NoSuchDeadLetter: none is open.
            BusUnavailable: not known whether it was noted.
        """
        await self._decide(DISCARDED, event_id, by, reason)

    async def _decide(self, kind: str, event_id: str, by: str, reason: str) -> None:
        await self.refresh()
        if not self.is_open(event_id):
            raise NoSuchDeadLetter(event_id)
        decision = Decision(event_id=event_id, by=by, reason=reason, at=self.clock.now())
        await self._publish(kind, event_id, decision, self._letters[event_id].letter.traceparent)
        await self.refresh()

    async def _publish(self, kind: str, event_id: str, content: Struct, traceparent: str) -> None:
        event = Event(uuid7(), self.source.topic, event_id, kind, msgspec.json.encode(content), traceparent, self.clock.now())
        await self.bus.publish([event])

    def _learn(self, message: Message) -> None:
        if message.type == DEAD_LETTER:
            letter = msgspec.json.decode(message.payload, type=DeadLetter)
            known = self._letters.get(letter.event_id)
            self._letters[letter.event_id] = Letter(letter, "open", known.decisions if known else ())
            return
        status: Status | None = {REPLAYED: "replayed", DISCARDED: "discarded"}.get(message.type)  # type: ignore[assignment]
        decision = decision_in(message) if status else None
        known = self._letters.get(decision.event_id) if decision else None
        if status and decision and known:
            self._letters[decision.event_id] = Letter(known.letter, status, (*known.decisions, (status, decision)))


def decision_in(message: Message) -> Decision:
    """The decision that a message of the topic tells."""
    return msgspec.json.decode(message.payload, type=Decision)
