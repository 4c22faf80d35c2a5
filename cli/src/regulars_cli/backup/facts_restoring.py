"""Restoring the facts: the server's own RESTORE into a database beside, which then takes the place of the one there is.

The group's offsets are set back between the two renames, when there is no database: nobody can insert then, so nobody commits. Whatever
dies on the way leaves nothing that looks right and is not: before that there are the facts of before, or none until it is done again;
after it whoever consumes goes on from where the backup ends.
"""

import secrets
from contextlib import suppress
from dataclasses import dataclass

import httpx

from kit.bus.interface import Bus, GroupIsActive, TopicPartition
from kit.clock import Clock
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.facts import FORMAT, NOTES, FactsBackup, read_facts
from regulars_cli.backup.facts_taking import GROUP, events_at, named, operate, partitions, place_of, refusal, text
from regulars_cli.backup.stores import Store
from regulars_cli.clickhouse import ClickHouse, Refused

_REBUILD = "Make the facts anew: `regulars reporting rebuild --from-ledger`."


@dataclass(frozen=True)
class Restored:
    """`aside` is the database of before, if there was one; `behind` events are on the bus that came since the backup."""

    aside: str
    behind: int


def choose(store: Store, identity: str | None) -> FactsBackup:
    """The backup of that name, or the newest. Raises CannotBackUp."""
    contents = read_facts(store)
    found = [each for each in contents.backups if identity in (None, each.id)]
    for fault in contents.damaged:
        # Where the newest is damaged, which one is restored in its place is for somebody to say.
        if fault.name == f"{NOTES}{identity}.json" or (
            identity is None and not any(f"{NOTES}{each.id}.json" > fault.name for each in found)
        ):
            raise CannotBackUp(f"{fault.sentence} `--backup` names another one, which `regulars backup list` shows.")
    if not found:
        raise CannotBackUp(f"There is no {'backup of the facts' if identity is None else identity} in {store.place}.")
    if found[-1].format > FORMAT:
        raise CannotBackUp(f"{found[-1].id} was written by a newer release: use that one.")
    return found[-1]


async def restore_facts(clickhouse: ClickHouse, bus: Bus, store: Store, backup: FactsBackup, clock: Clock) -> Restored:
    """Puts the facts of the backup in the place of those there are, which are set aside, and has the group go on from where they end.

    A rebuild that is under way finds its tables gone, and fails.

    Raises:
        CannotBackUp, Refused, httpx.HTTPError: the facts are those of before, or it says in which database they are.
    """
    offsets, behind = await _go_on_from(bus, backup)
    if any(lag.owner for lag in await bus.lag(GROUP)):
        raise _is_consuming()
    database, where = clickhouse.database, place_of(store, backup.id, backup.disk)
    fresh, aside = f"{database}_restoring_{secrets.token_hex(4)}", ""
    try:
        await operate(clickhouse, f"RESTORE DATABASE {named(backup.database)} AS {named(fresh)} FROM {where}", "RESTORED")
        if await _has(clickhouse, database):
            aside = f"{database}_before_{clock.now():%Y%m%dT%H%M%SZ}"
            await _rename(clickhouse, database, aside)
        await _set_offsets(bus, offsets)
        await _rename(clickhouse, fresh, database)
    except BaseException as error:
        await _take_back(clickhouse, fresh, aside)
        if isinstance(error, CannotBackUp | Refused | httpx.HTTPError) and (left := await _what_is_left(clickhouse, fresh, aside)):
            raise CannotBackUp(f"{_reason(error)} {left}") from None
        raise
    return Restored(aside, behind)


async def _take_back(clickhouse: ClickHouse, fresh: str, aside: str) -> None:
    """As it was, as far as the server lets."""
    if aside:
        # Refused where it never went, or where the other one has its place already.
        with suppress(Refused, httpx.HTTPError):
            await _rename(clickhouse, aside, clickhouse.database)
    with suppress(Refused, httpx.HTTPError):
        await clickhouse(f"DROP DATABASE IF EXISTS {named(fresh)} SETTINGS max_table_size_to_drop = 0", anywhere=True)


async def _what_is_left(clickhouse: ClickHouse, fresh: str, aside: str) -> str:
    """What is not as it was: which database is where, and what to do. Empty: all is."""
    database = clickhouse.database
    try:
        there = {name for name in (database, fresh, aside) if name and await _has(clickhouse, name)}
    except (Refused, httpx.HTTPError):
        of_before = f"the facts of before are in {database} or in {aside}" if aside else f"{database} is as it was"
        return f"What is where could not be asked: {of_before}; drop {fresh}, if it is there."
    said = []
    if aside in there and database in there:
        said.append(f"The facts of before are in the database {aside}; see what {database} holds, or restore again.")
    elif aside in there:
        said.append(f"The facts of before are in the database {aside}, and there is no {database}: restore again, or rename it back.")
    if fresh in there:
        said.append(f"The database {fresh} is left over: drop it.")
    return " ".join(said)


def _reason(error: CannotBackUp | Refused | httpx.HTTPError) -> str:
    if isinstance(error, Refused):
        return str(refusal(error))
    return str(error) if isinstance(error, CannotBackUp) else f"ClickHouse does not answer ({type(error).__name__})."


async def _go_on_from(bus: Bus, backup: FactsBackup) -> tuple[dict[TopicPartition, int], int]:
    """From where the group goes on in each partition, and how many events that are. Raises CannotBackUp: it could not catch up."""
    states = await partitions(bus)
    noted = {TopicPartition(each.topic, each.partition): each for each in backup.positions}
    last = await events_at(bus, {source: each.end - 1 for source, each in noted.items() if each.last_event_id})
    for source, each in noted.items():
        state = states.get(source)
        is_retained = state is not None and state.first_offset < each.end <= state.next_offset
        if (
            state is None
            or state.next_offset < each.end
            or state.first_offset < each.first
            or (is_retained and last.get(source, "") != each.last_event_id)
        ):
            raise CannotBackUp(f"This is not the bus that the facts of {backup.id} came over, or it was lost since. {_REBUILD}")
    # One that came later is read from its first event.
    offsets = {source: noted[source].offset if source in noted else 0 for source in states}
    if any(states[source].first_offset > offset for source, offset in offsets.items()):
        raise CannotBackUp(f"The bus no longer retains all that came since {backup.id}. {_REBUILD}")
    return offsets, sum(states[source].next_offset - offset for source, offset in offsets.items())


async def _set_offsets(bus: Bus, offsets: dict[TopicPartition, int]) -> None:
    try:
        await bus.set_offsets(GROUP, offsets)
    except GroupIsActive:
        raise _is_consuming() from None


def _is_consuming() -> CannotBackUp:
    return CannotBackUp("Facts are being consumed: stop every `reporting consume`, and restore again; start them only after that.")


async def _rename(clickhouse: ClickHouse, database: str, name: str) -> None:
    await clickhouse(f"RENAME DATABASE {named(database)} TO {named(name)}", anywhere=True)


async def _has(clickhouse: ClickHouse, database: str) -> bool:
    return await clickhouse(f"SELECT count() FROM system.databases WHERE name = {text(database)}", anywhere=True) == [["1"]]
