"""Restoring the facts: the server's own RESTORE into a database beside, the group's offsets set back, and then the databases change places.

In that order, so that whatever dies on the way leaves nothing that looks right and is not: before the change of places there are the
facts of before, into which events come again and replace themselves.
"""

import secrets
from contextlib import suppress
from dataclasses import dataclass

import httpx

from kit.bus.interface import Bus, GroupIsActive, TopicPartition
from kit.clock import Clock
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.facts import FORMAT, FactsBackup, read_facts
from regulars_cli.backup.facts_taking import GROUP, events_at, named, operate, partitions, place_of, text
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
    found = [each for each in read_facts(store) if identity in (None, each.id)]
    if not found:
        raise CannotBackUp(f"There is no {'backup of the facts' if identity is None else identity} in {store.place}.")
    if found[-1].format > FORMAT:
        raise CannotBackUp(f"{found[-1].id} was written by a newer release: use that one.")
    return found[-1]


async def restore_facts(clickhouse: ClickHouse, bus: Bus, store: Store, backup: FactsBackup, clock: Clock) -> Restored:
    """Puts the facts of the backup in the place of those there are, which are set aside, and has the group go on from where they end.

    A rebuild that is under way finds its tables gone, and fails.

    Raises:
        CannotBackUp, Refused, httpx.HTTPError: it must be done again, where it says so, or the facts are those of before.
    """
    offsets, behind = await _go_on_from(bus, backup)
    if any(lag.owner for lag in await bus.lag(GROUP)):
        raise _is_consuming()
    database, where = clickhouse.database, place_of(store, backup.id, backup.disk)
    fresh, aside = f"{database}_restoring_{secrets.token_hex(4)}", ""
    try:
        await operate(clickhouse, f"RESTORE DATABASE {named(backup.database)} AS {named(fresh)} FROM {where}", "RESTORED")
        await _set_offsets(bus, offsets)
        if await _has(clickhouse, database):
            aside = f"{database}_before_{clock.now():%Y%m%dT%H%M%SZ}"
            await _rename(clickhouse, database, aside)
        await _rename(clickhouse, fresh, database)
    except BaseException:
        with suppress(Refused, httpx.HTTPError):
            await clickhouse(f"DROP DATABASE IF EXISTS {named(fresh)} SYNC SETTINGS max_table_size_to_drop = 0", anywhere=True)
            if aside and not await _has(clickhouse, database):
                await _rename(clickhouse, aside, database)
        raise
    # Whoever began to consume in between moved them on, and what was consumed went aside.
    await _set_offsets(bus, offsets)
    return Restored(aside, behind)


async def _go_on_from(bus: Bus, backup: FactsBackup) -> tuple[dict[TopicPartition, int], int]:
    """From where the group goes on in each partition, and how many events that are. Raises CannotBackUp: it could not catch up."""
    states = await partitions(bus)
    noted = {TopicPartition(each.topic, each.partition): each for each in backup.positions}
    last = await events_at(bus, {source: each.end - 1 for source, each in noted.items() if each.last_event_id})
    for source, each in noted.items():
        state = states.get(source)
        is_retained = state is not None and state.first_offset < each.end <= state.next_offset
        if state is None or state.next_offset < each.end or (is_retained and last.get(source, "") != each.last_event_id):
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
