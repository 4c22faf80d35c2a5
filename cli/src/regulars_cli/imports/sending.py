"""Puts commands into groups and sends them over a few ordered lanes.

A customer's commands stay on one lane, one group of a lane is in flight at a time, and a group that could not be decided stops its lane:
a command is never sent before those it follows were decided.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final
from zlib import crc32

import msgspec

from regulars_cli.imports.rules import Command
from regulars_cli.imports.wire import Outcome

LANES: Final = 4
MAX_COMMANDS: Final = 400
MAX_LINES: Final = 5_000
# On a lane: one group at the gateway, one ready to follow it.
MAX_UNSETTLED: Final = 2
# What the content of a group depends on, besides the plan; a checkpoint holds only for the same.
FORMATION: Final = f"1:{LANES}:{MAX_COMMANDS}:{MAX_LINES}"

Send = Callable[[bytes, list[str]], list[Outcome]]


@dataclass(slots=True)
class Group:
    """Commands of one call. The n-th group is the same whenever the same plan is sent."""

    index: int
    lane: int
    commands: list[Command] = field(default_factory=list)
    line_count: int = 0

    def operation_ids(self) -> list[str]:
        return [command.body.operation_id for command in self.commands]


def form_groups(commands: Iterable[Command]) -> Iterator[Group]:
    """Groups in the order they are full.

    A reversal is never in one group with its sale: should the gateway fail to decide the sale, the reversal has not been decided either.
    """
    lanes: list[list[Command]] = [[] for _ in range(LANES)]
    line_counts = [0] * LANES
    sales: list[set[str]] = [set() for _ in range(LANES)]
    formed = 0

    def cut(lane: int) -> Group:
        nonlocal formed
        group = Group(formed, lane, lanes[lane], line_counts[lane])
        formed += 1
        lanes[lane], line_counts[lane], sales[lane] = [], 0, set()
        return group

    for command in commands:
        lane = crc32(command.lane.encode()) % LANES
        if command.follows in sales[lane]:
            yield cut(lane)
        lanes[lane].append(command)
        line_counts[lane] += command.line_count
        if command.kind == "sale":
            sales[lane].add(command.body.operation_id)
        if len(lanes[lane]) >= MAX_COMMANDS or line_counts[lane] >= MAX_LINES:
            yield cut(lane)
    for lane in range(LANES):
        if lanes[lane]:
            yield cut(lane)


_encoder = msgspec.json.Encoder()


class Sender:
    """Sends groups from a thread for each lane; `settle` is called with each group's outcomes in the caller's thread.

    Raises what `send` raised, from the next call.
    """

    def __init__(self, send: Send, settle: Callable[[Group, list[Outcome]], None]) -> None:
        self._send = send
        self._settle = settle
        self._unsettled = [0] * LANES
        self._to_send: list[SimpleQueue[tuple[Group, bytes] | None]] = [SimpleQueue() for _ in range(LANES)]
        self._sent: SimpleQueue[tuple[Group, list[Outcome] | BaseException]] = SimpleQueue()
        for lane in range(LANES):
            threading.Thread(target=self._run, args=(self._to_send[lane],), daemon=True).start()

    def submit(self, group: Group) -> None:
        """Queues a group on its lane, waiting while the lane is full."""
        body = _encoder.encode({"commands": [{command.kind: command.body} for command in group.commands]})
        while self._unsettled[group.lane] >= MAX_UNSETTLED or not self._sent.empty():
            self._settle_one()
        self._unsettled[group.lane] += 1
        self._to_send[group.lane].put((group, body))

    def finish(self) -> None:
        """Waits for every group."""
        while any(self._unsettled):
            self._settle_one()
        self.stop()

    def stop(self) -> None:
        """Ends the lanes; what is queued and not yet sent stays unsent."""
        for lane in self._to_send:
            lane.put(None)

    def _settle_one(self) -> None:
        group, outcomes = self._sent.get()
        if isinstance(outcomes, BaseException):
            raise outcomes
        self._unsettled[group.lane] -= 1
        self._settle(group, outcomes)

    def _run(self, to_send: SimpleQueue[tuple[Group, bytes] | None]) -> None:
        while item := to_send.get():
            group, body = item
            try:
                self._sent.put((group, self._send(body, group.operation_ids())))
            except BaseException as error:  # noqa: BLE001  raised again where the import waits
                self._sent.put((group, error))
                return
