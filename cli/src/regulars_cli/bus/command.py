"""`regulars bus topics | lag | dead-letters list|show|replay|discard`.

It asks the bus itself, so that it answers whichever services run. Exit codes: 0 done; 1 could not be done; 2 wrong arguments.
"""

import argparse
import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from kit.bus.connecting import connect
from kit.bus.dead_letters import DeadLetters, Letter, NoSuchDeadLetter
from kit.bus.interface import Bus, BusUnavailable, PartitionLag, TopicUnknown
from kit.bus.topics import dead_letters_topic
from kit.clock import Clock, SystemClock
from kit.settings import SettingsInvalid
from regulars_cli.bus.payloads import readable
from regulars_cli.bus.settings import BusUnknown, add_arguments, find_bus

CLIENT_NAME = "regulars-bus"
_PREFIX, _SUFFIX = dead_letters_topic("\0").split("\0")

Action = Callable[[Bus, argparse.Namespace], Awaitable[None]]


class CannotBeDone(Exception):
    """The command ends here; the text says why, and what to do."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `bus` to the command."""
    parser = subparsers.add_parser("bus", help="see the topics, who is behind, and what could not be handled")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    _add(actions, "topics", _topics, "every topic and what it holds")

    lag = _add(actions, "lag", _lag, "how far the groups are behind, by partition")
    lag.add_argument("group", metavar="GROUP", nargs="?", help="of this group alone (default: of all)")

    letters = actions.add_parser("dead-letters", help="events that a group could not handle")
    deeds = letters.add_subparsers(required=True, metavar="ACTION")
    listed = _add(deeds, "list", _list_letters, "those that wait for a decision")
    listed.add_argument("--all", action="store_true", help="also those that were replayed or discarded")
    show = _add(deeds, "show", _show_letter, "all about one: what the event says, why it failed, who decided what")
    show.add_argument("event_id", metavar="EVENT")
    for name, action, help_text in (
        ("replay", _replay, "have the group handle events again, now that the cause is gone"),
        ("discard", _discard, "decide that events shall have no effect"),
    ):
        deed = _add(deeds, name, action, help_text)
        which = deed.add_mutually_exclusive_group(required=True)
        which.add_argument("event_ids", metavar="EVENT", nargs="*", default=[], help="ids of the events")
        which.add_argument("--all", action="store_true", help="all that are open, of the group named")
        deed.add_argument("--reason", required=True, type=_sentence, help="why: it is kept with the decision")
        deed.add_argument("--by", default=None, help="who decides (default: the user who runs the command)")
    for deed in deeds.choices.values():
        deed.add_argument("--group", help="the group's that could not handle them (default: any)")


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, action: Action, help_text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help_text)
    parser.add_argument("--json", action="store_true", help="for programs")
    add_arguments(parser)
    parser.set_defaults(func=run, action=action)
    return parser


def run(parsed: argparse.Namespace) -> int:
    """0: done. 1: not, for the reason that was printed."""
    try:
        asyncio.run(_with_bus(parsed))
    except (BusUnavailable, BusUnknown, SettingsInvalid, CannotBeDone, NoSuchDeadLetter) as reason:
        print(reason, file=sys.stderr)
        return 1
    except TopicUnknown:
        print("This bus has no such topic: has it been prepared, with `python -m kit.bus create-topics`?", file=sys.stderr)
        return 1
    return 0


async def _with_bus(parsed: argparse.Namespace) -> None:
    async with connect(find_bus(parsed.var), client_name=CLIENT_NAME) as bus:
        await parsed.action(bus, parsed)


async def _topics(bus: Bus, parsed: argparse.Namespace) -> None:
    found = sorted((await bus.topics()).items(), key=lambda item: item[0].name)
    if parsed.json:
        _print_json(
            [
                {
                    "name": spec.name,
                    "retention_seconds": int(spec.retention.total_seconds()),
                    "partitions": [
                        {"partition": state.source.partition, "first_offset": state.first_offset, "next_offset": state.next_offset}
                        for state in states
                    ],
                }
                for spec, states in found
            ]
        )
        return
    if not found:
        print("There are no topics yet.")
        return
    _print_table(
        ("TOPIC", "PARTITIONS", "RETENTION", "MESSAGES", "EVER"),
        [
            (
                spec.name,
                spec.partitions,
                _duration(spec.retention),
                sum(state.next_offset - state.first_offset for state in states),
                sum(state.next_offset for state in states),
            )
            for spec, states in found
        ],
    )


async def _lag(bus: Bus, parsed: argparse.Namespace) -> None:
    groups = [parsed.group] if parsed.group else list(await bus.groups())
    lags = {group: sorted(await bus.lag(group), key=lambda lag: lag.source) for group in groups}
    if parsed.group and not lags[parsed.group]:
        known = ", ".join(await bus.groups()) or "none yet"
        raise CannotBeDone(f"No group {parsed.group} ever read. Groups that did: {known}.")
    if parsed.json:
        _print_json(
            [
                {
                    "group": group,
                    "behind": _behind(group, partitions),
                    "partitions": [
                        {
                            "topic": lag.source.topic,
                            "partition": lag.source.partition,
                            "behind": lag.messages,
                            "committed": lag.committed,
                            "first_offset": lag.first_offset,
                            "next_offset": lag.next_offset,
                            "owner": lag.owner or None,
                        }
                        for lag in partitions
                    ],
                }
                for group, partitions in lags.items()
            ]
        )
        return
    if not groups:
        print("No group has read yet.")
        return
    _print_table(
        ("GROUP", "TOPIC", "PARTITION", "BEHIND", "COMMITTED", "NEXT", "READ BY"),
        [
            (
                group,
                lag.source.topic,
                lag.source.partition,
                lag.messages,
                "never" if lag.committed is None else lag.committed,
                lag.next_offset,
                lag.owner or "nobody",
            )
            for group, partitions in lags.items()
            for lag in partitions
        ],
    )
    for group, partitions in lags.items():
        print(f"{group} is {_messages(_behind(group, partitions))} behind.")


def _behind(group: str, partitions: Iterable[PartitionLag]) -> int:
    """How many events it has yet to handle. Its own dead letters, which it reads too, are none."""
    return sum(lag.messages for lag in partitions if lag.source.topic != dead_letters_topic(group))


async def _list_letters(bus: Bus, parsed: argparse.Namespace) -> None:
    letters = [
        (group, known)
        for group, found in (await _letters(bus, parsed.group)).items()
        for known in found.all().values()
        if parsed.all or known.status == "open"
    ]
    if parsed.json:
        _print_json([_letter_document(group, known) for group, known in letters])
        return
    if not letters:
        print("No dead letters." if parsed.all else "No dead letters are open.")
        return
    _print_table(
        ("EVENT", "GROUP", "TYPE", "CODE", "FAILED AT", "STATUS"),
        [
            (
                known.letter.event_id,
                group,
                known.letter.type.rpartition(".")[2],
                known.letter.code,
                _time(known.letter.failed_at),
                known.status,
            )
            for group, known in letters
        ],
    )


async def _show_letter(bus: Bus, parsed: argparse.Namespace) -> None:
    group, known = _find(await _letters(bus, parsed.group), parsed.event_id)
    document = _letter_document(group, known) | {"event": readable(known.letter.type, known.letter.payload)}
    if parsed.json:
        _print_json(document)
        return
    letter = known.letter
    for name, value in (
        ("event", letter.event_id),
        ("type", letter.type),
        ("from", f"{letter.topic}, partition {letter.partition}, offset {letter.offset}"),
        ("key", letter.key),
        ("recorded", _time(letter.recorded_at)),
        ("trace", letter.traceparent or "none"),
        ("group", group),
        ("failed", f"{_time(letter.failed_at)}: {letter.code}"),
        ("status", known.status),
    ):
        print(f"{name:<9} {value}")
    for status, decision in known.decisions:
        print(f"{status:<9} {_time(decision.at)} by {decision.by}: {decision.reason}")
    print(json.dumps(document["event"], indent=2, ensure_ascii=False))


async def _replay(bus: Bus, parsed: argparse.Namespace) -> None:
    await _decide(bus, parsed, "replayed", DeadLetters.replay)
    if not parsed.json:
        print("What fails again is listed again.")


async def _discard(bus: Bus, parsed: argparse.Namespace) -> None:
    await _decide(bus, parsed, "discarded", DeadLetters.discard)


async def _decide(bus: Bus, parsed: argparse.Namespace, done: str, decide: Callable[..., Awaitable[None]]) -> None:
    found = await _letters(bus, parsed.group)
    if parsed.all:
        if not parsed.group:
            raise CannotBeDone("Say whose: give --group with --all.")
        wanted = [(parsed.group, letter.event_id) for letters in found.values() for letter in letters.open()]
    else:
        # All are looked up before the first is decided.
        wanted = [(_find(found, event_id, is_open=True)[0], event_id) for event_id in parsed.event_ids]
    by = parsed.by or getpass.getuser()
    for group, event_id in wanted:
        await decide(found[group], event_id, by=by, reason=parsed.reason)
        if not parsed.json:
            print(f"{event_id} of {group} is {done}.")
    if parsed.json:
        _print_json([{"event_id": event_id, "group": group, "status": done} for group, event_id in wanted])
    elif not wanted:
        print("No dead letters are open.")


async def _letters(bus: Bus, group: str | None) -> dict[str, DeadLetters]:
    """The dead letters of every group that has a topic for them, or of one."""
    clock: Clock = SystemClock()
    names = sorted(spec.name for spec in await bus.topics() if spec.name.startswith(_PREFIX) and spec.name.endswith(_SUFFIX))
    groups = [name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in names]
    if group is not None and group not in groups:
        raise CannotBeDone(f"There is no group {group}. Groups that may have dead letters: {', '.join(groups) or 'none yet'}.")
    found = {each: DeadLetters(bus, each, clock) for each in groups if group in (None, each)}
    for letters in found.values():
        await letters.refresh()
    return found


def _find(found: dict[str, DeadLetters], event_id: str, *, is_open: bool = False) -> tuple[str, Letter]:
    """Whose letter an event is, and where it stands."""
    having = {group: letters.all()[event_id] for group, letters in found.items() if event_id in letters.all()}
    if is_open and any(known.status == "open" for known in having.values()):
        having = {group: known for group, known in having.items() if known.status == "open"}
    match list(having.items()):
        case []:
            raise CannotBeDone(f"There is no dead letter {event_id}: `regulars bus dead-letters list --all` names them.")
        case [(group, known)]:
            if is_open and known.status != "open":
                raise CannotBeDone(f"The dead letter {event_id} was {known.status} already.")
            return group, known
        case _:
            raise CannotBeDone(f"{event_id} is a dead letter of {' and '.join(having)}: say which with --group.")


def _letter_document(group: str, known: Letter) -> dict[str, Any]:
    letter = known.letter
    return {
        "event_id": letter.event_id,
        "group": group,
        "status": known.status,
        "code": letter.code,
        "failed_at": letter.failed_at.isoformat(),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "key": letter.key,
        "type": letter.type,
        "recorded_at": letter.recorded_at.isoformat(),
        "traceparent": letter.traceparent or None,
        "decisions": [
            {"status": status, "at": decision.at.isoformat(), "by": decision.by, "reason": decision.reason}
            for status, decision in known.decisions
        ],
    }


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their longest value; numbers to the right."""
    texts = [[f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[at], int) for row in rows) for at in range(len(head))]
    widths = [max(len(line[at]) for line in [head, *texts]) for at in range(len(head))]
    for line in [head, *texts]:
        cells = [text.rjust(width) if right else text.ljust(width) for text, width, right in zip(line, widths, numeric, strict=True)]
        print("  ".join(cells).rstrip())


def _messages(number: int) -> str:
    return "1 message" if number == 1 else f"{number:,} messages"


def _duration(duration: timedelta) -> str:
    return f"{duration.days:,} days" if duration >= timedelta(days=2) else f"{duration.total_seconds() / 3600:g} hours"


def _time(at: datetime) -> str:
    return at.isoformat(sep=" ", timespec="seconds")


def _sentence(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("say why")
    return text.strip()
