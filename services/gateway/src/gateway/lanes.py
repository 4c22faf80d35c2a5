"""Lanes: the gathering of writes into groups (design.md, "The batch writer", 1).

A lane has one group under way; what arrives meanwhile is the next group. Nobody waits on purpose: on an idle lane a single write
leaves at once, alone. Sales and adjustments of one member take one lane, so that they keep their order and share one lock. A reversal
names only its sale, and takes the lane of the sale's id: that changes no figure, for the member service locks the wallet, and so decides
the commands of one member one after the other, whichever lanes they came by.

A group that the member service could not take (it is restarting) is sent again as it is, by its operation ids, until the commands'
deadlines; a command past its deadline is answered 503. What was submitted is sent, whether or not its client still waits.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol

import grpc

from gateway.problems import internal_error, member_away, too_busy
from kit.metrics import LANE_GROUP_SIZE, LANE_QUEUED, LANE_REFUSED, LANE_WAIT, live
from kit.problems import render
from kit.rpc import GroupSpans
from kit.tracing import recorder
from regulars.member.v1 import wallet_service_pb2 as pb

log = logging.getLogger(__name__)

EXECUTE = "regulars.member.v1.WalletService/ExecuteCommands"

# Writes that make it worth to have a second group under way, and how long a group may take before others no longer wait for it.
ENOUGH_BESIDE = 24
SLOW_SECONDS = 0.05
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5
# How often writes whose deadline has passed are looked for while a call hangs.
EXPIRY_CHECK_SECONDS = 0.25
# Well below the largest message of a channel (kit.rpc).
GROUP_BYTES = 16 * 1024 * 1024
RETRIED_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})


_queued = live(LANE_QUEUED, "till")
_group_sizes, _group_waits = LANE_GROUP_SIZE.of("till"), LANE_WAIT.of("till")


class Execute(Protocol):
    """The call of the member service (a stub's ExecuteCommands)."""

    def __call__(self, request: pb.ExecuteCommandsRequest, /, *, timeout: float) -> Awaitable[pb.ExecuteCommandsResponse]:
        """Decides the commands of a group, in order."""


class Waiting:
    """A write under way: its command, and the outcome when it is known."""

    __slots__ = ("bytes", "command", "deadline", "outcome", "since", "traceparent")

    def __init__(self, command: pb.Command, size: int, since: float, deadline: float, outcome: "asyncio.Future[pb.Outcome]") -> None:
        self.command = command
        self.bytes = size
        self.since = since
        self.deadline = deadline
        self.outcome = outcome
        # Of the request; the command goes out under the span of the call that takes it.
        self.traceparent = command.traceparent

    def answer(self, outcome: pb.Outcome) -> None:
        """Gives the outcome to whoever waits; late ones are dropped."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def not_decided() -> pb.Outcome:
    """The answer to a write of which it is not known in time whether it was decided."""
    return pb.Outcome(status=503, body=render(member_away()))


class Lane:
    """One group under way, and a bounded queue behind it.

    While another lane's group is under way, a few writes wait for it to end: the CPU a sale costs falls by a third from groups of 16 to
    groups of 32. Enough of them leave at once, and so do any when nothing is under way or what is takes long.
    """

    def __init__(self, execute: Execute, beside: "list[Lane]", *, group_size: int, capacity: int) -> None:
        self._execute = execute
        self._beside = beside
        # When its group left (loop time); None: none is under way.
        self.busy_since: float | None = None
        self._group_size = group_size
        self._capacity = capacity
        self._queue: deque[Waiting] = deque()
        self._under_way: asyncio.Task[None] | None = None
        _queued.add(self._queue.__len__)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way or waiting."""
        return self._under_way is not None or bool(self._queue)

    def submit(self, waiting: Waiting) -> None:
        """Queues a write. Raises Refusal (503, too_busy) when the lane is full."""
        if len(self._queue) >= self._capacity:
            LANE_REFUSED.of("till").inc()
            raise too_busy()
        self._queue.append(waiting)
        self.start()
        if len(self._queue) == 1:
            # Nobody waits longer than this for a group that hangs.
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self.start)

    def start(self) -> None:
        """Sends a group if there is one and it may leave now."""
        if self._under_way is None and self._queue and self._may_leave():
            loop = asyncio.get_running_loop()
            self.busy_since = loop.time()
            self._under_way = loop.create_task(self._run())

    def _may_leave(self) -> bool:
        if len(self._queue) >= ENOUGH_BESIDE:
            return True
        since = [lane.busy_since for lane in self._beside if lane.busy_since is not None]
        return not since or asyncio.get_running_loop().time() - min(since) >= SLOW_SECONDS

    async def drained(self) -> None:
        """Returns when nothing is under way or waiting."""
        while self._under_way is not None:
            await asyncio.wait({self._under_way})

    async def _run(self) -> None:
        try:
            await send_group(self._execute, self._take_group(), self._queue)
        finally:
            self._under_way = self.busy_since = None
            # The others first, so that none waits behind a busy one.
            for lane in self._beside:
                if lane is not self:
                    lane.start()
            self.start()

    def _take_group(self) -> list[Waiting]:
        queue = self._queue
        group = [queue.popleft()]
        size = group[0].bytes
        while queue and len(group) < self._group_size and size + queue[0].bytes <= GROUP_BYTES:
            size += queue[0].bytes
            group.append(queue.popleft())
        _group_sizes.observe(len(group))
        _group_waits.observe(asyncio.get_running_loop().time() - group[0].since)
        return group


class Lanes:
    """A few lanes, so that several groups are in flight and every replica of the member service has work."""

    def __init__(self, execute: Execute, *, count: int, group_size: int, capacity: int, deadline_seconds: float) -> None:
        self._lanes: list[Lane] = []
        self._lanes += [Lane(execute, self._lanes, group_size=group_size, capacity=capacity) for _ in range(count)]
        self._deadline_seconds = deadline_seconds

    def submit(self, key: str, command: pb.Command, size: int) -> "asyncio.Future[pb.Outcome]":
        """Sends a command in the lane of `key` (a member's id, or what stands for one). `size`: about how many bytes it has.

        Raises Refusal (503, too_busy) when that lane is full.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[pb.Outcome] = loop.create_future()
        now = loop.time()
        self._lanes[hash(key) % len(self._lanes)].submit(Waiting(command, size, now, now + self._deadline_seconds, outcome))
        return outcome

    async def drained(self) -> None:
        """Returns when every lane is empty."""
        while any(lane.is_busy for lane in self._lanes):
            for lane in self._lanes:
                await lane.drained()


class ImportLanes:
    """Lanes for groups that arrive whole. They stand beside the others, so that an import does not make tills wait behind it."""

    def __init__(self, execute: Execute, *, count: int, capacity: int, deadline_seconds: float) -> None:
        self._execute = execute
        self._free = asyncio.Semaphore(count)
        self._capacity = capacity
        self._deadline_seconds = deadline_seconds
        self._under_way: set[asyncio.Task[None]] = set()
        self._waiting = 0
        live(LANE_QUEUED, "import").add(lambda: self._waiting)

    async def run(self, commands: Sequence[pb.Command]) -> list[pb.Outcome]:
        """The outcomes of a group of commands, decided in order in one call.

        Raises Refusal (503, too_busy) when too many groups wait.
        """
        if len(self._under_way) >= self._capacity:
            LANE_REFUSED.of("import").inc()
            raise too_busy()
        loop = asyncio.get_running_loop()
        now = loop.time()
        group = [Waiting(command, 0, now, now + self._deadline_seconds, loop.create_future()) for command in commands]
        task = loop.create_task(self._send(group))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return [await waiting.outcome for waiting in group]

    async def _send(self, group: list[Waiting]) -> None:
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            LANE_GROUP_SIZE.of("import").observe(len(group))
            LANE_WAIT.of("import").observe(asyncio.get_running_loop().time() - group[0].since)
            await send_group(self._execute, group)
        finally:
            self._free.release()

    async def drained(self) -> None:
        """Returns when no group is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way)


async def send_group(execute: Execute, group: list[Waiting], behind: deque[Waiting] | None = None) -> None:
    """Sends a group until it is decided or its deadlines have passed, and answers everyone in it.

    Meanwhile the writes queued `behind` it that ran out of time are answered too.
    """
    pause = FIRST_PAUSE_SECONDS
    while group := _within_deadline(group, behind):
        try:
            response = await _call(execute, group, behind)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                _answer_all(group, not_decided())
                return
            if error.code() not in RETRIED_CODES:
                # No text of the error: another service's words may quote values.
                log.error("the member service failed a group", extra={"code": error.code().name, "commands": len(group)})  # noqa: TRY400
                _answer_all(group, pb.Outcome(status=500, body=render(internal_error())))
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        except Exception:
            log.exception("a group could not be sent", extra={"commands": len(group)})
            _answer_all(group, pb.Outcome(status=500, body=render(internal_error())))
            return
        else:
            for waiting, outcome in zip(group, response.outcomes, strict=True):
                waiting.answer(outcome)
            return


async def _call(execute: Execute, group: list[Waiting], behind: deque[Waiting] | None) -> pb.ExecuteCommandsResponse:
    """One attempt. In each trace that is recorded it has a span of its own, below which the member service's is."""
    if recorder() is None:
        return await _answered(execute, group, behind)
    spans, code = GroupSpans(EXECUTE, "client"), "OK"
    for waiting in group:
        waiting.command.traceparent = spans.under(waiting.traceparent)
    try:
        return await _answered(execute, group, behind)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        for waiting in group:
            spans.tell(waiting.traceparent, code)
        raise
    finally:
        spans.end(code, **{"regulars.group_size": len(group)})


async def _answered(execute: Execute, group: list[Waiting], behind: deque[Waiting] | None) -> pb.ExecuteCommandsResponse:
    request = pb.ExecuteCommandsRequest(commands=[waiting.command for waiting in group])
    # Every client has its answer at its own deadline; the call itself is not given up while one of them waits.
    remaining = group[-1].deadline - asyncio.get_running_loop().time()
    call = asyncio.ensure_future(execute(request, timeout=remaining))
    while True:
        done, _ = await asyncio.wait((call,), timeout=EXPIRY_CHECK_SECONDS)
        if done:
            response = call.result()
            if len(response.outcomes) != len(group):
                raise RuntimeError("The member service answered another number of commands than it was sent.")
            return response
        _within_deadline(group, behind)


def _within_deadline(group: list[Waiting], behind: deque[Waiting] | None) -> list[Waiting]:
    """Answers whoever ran out of time, and returns the part of the group that did not."""
    now = asyncio.get_running_loop().time()
    late = [waiting for waiting in group if waiting.deadline <= now]
    while behind and behind[0].deadline <= now:
        late.append(behind.popleft())
    _answer_all(late, not_decided())
    return [waiting for waiting in group if waiting.deadline > now] if late else group


def _answer_all(group: Iterable[Waiting], outcome: pb.Outcome) -> None:
    for waiting in group:
        waiting.answer(outcome)
