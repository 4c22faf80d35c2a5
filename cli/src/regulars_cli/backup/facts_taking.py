"""Backing the facts up: ClickHouse's own BACKUP, and from where on the bus to go on after its restore.

BACKUP copies table after table while facts come in, so it is of no one moment. It need not be: facts are inserted before their offsets
are committed, so whatever lies below the offsets that were committed before it began is in it, and a fact that comes again replaces
itself. After a restore the group goes on from these offsets, and is right once it has caught up.

That holds on the bus that the facts came over, and on no other. So the note has the last event of each partition that may be in the
backup: a bus that was made anew, or put back to before, has another one there, or none.

A rebuild has tables change places, and for a while they lack what was consumed meanwhile; a migration changes what they are. So neither
may happen from before the offsets are read until BACKUP has ended.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import cast

import httpx

from kit.bus.connecting import connect
from kit.bus.interface import Bus, BusUnavailable, Message, PartitionState, TopicPartition
from kit.bus.topics import dead_letters_topic, load_topics
from kit.clock import Clock
from kit.settings import SettingsInvalid
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.archive import write_json
from regulars_cli.backup.facts import DATA, FORMAT, NOTES, FactsBackup, FactsContents, Position, read_facts
from regulars_cli.backup.stores import Bucket, Store, address_for_others
from regulars_cli.bus.settings import BusUnknown, find_bus
from regulars_cli.clickhouse import ClickHouse, Refused

# Who makes facts of events.
GROUP = "reporting"
CLIENT_NAME = "regulars-backup"
# No statement takes long but BACKUP and RESTORE, which go on by themselves.
_ANSWER_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0
# For how long a server that carries one out may not answer.
_PATIENCE_SECONDS = 300.0

# Rebuilds that are under way, and all that would differ after another one or after a migration.
_TABLES = """
SELECT
    (SELECT countIf(state IN ('running', 'waiting', 'swapping')) FROM rebuilds FINAL),
    (SELECT count() FROM rebuilds FINAL), (SELECT toString(max(changed_at)) FROM rebuilds FINAL),
    (SELECT max(name) FROM migrations)
"""
# What tells how much there is.
_FACTS = ("sales", "returns", "points_moves", "members")
_COUNT = f"SELECT {', '.join(f'(SELECT count() FROM {table})' for table in _FACTS)}"
_HOW_IT_GOES = "SELECT status, extract(error, '^Code: ([0-9]+)'), num_entries, compressed_size FROM system.backups WHERE id = "
_WHY = {
    "36": "it does not know the place, or is not set up for backups to that disk (`backups.allowed_disk`).",
    "60": "its database has no tables of facts: is CLICKHOUSE_URL right, and was `python -m reporting migrate` run?",
    "81": "there is no such database: is CLICKHOUSE_URL right?",
    "497": "its user may not: docs/backup.md says which rights it needs.",
    "499": "it cannot use the object store: check address, keys and rights, and that the server itself reaches it.",
    "516": "correct user and password in CLICKHOUSE_URL.",
    "599": "the backup is not where it was written.",
}


@asynccontextmanager
async def facts_and_bus(noted: Mapping[str, str], var: Path) -> AsyncIterator[tuple[ClickHouse, Bus]]:
    """The server of the facts and the bus, as the environment or the installation's notes name them. Raises CannotBackUp."""
    environ = {**noted, **os.environ}
    url = environ.get("CLICKHOUSE_URL", "")
    if not url:
        raise CannotBackUp(
            "Nothing names a ClickHouse server (CLICKHOUSE_URL). The engine inside `reporting` needs no backup:"
            " `regulars reporting rebuild` makes its folder anew."
        )
    try:
        async with (
            connect(find_bus(var), client_name=CLIENT_NAME) as bus,
            httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False) as http,
        ):
            yield ClickHouse(http, url, environ.get("CLICKHOUSE_PASSWORD_FILE", "")), bus
    except Refused as refused:
        raise refusal(refused) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise CannotBackUp(f"ClickHouse does not answer ({type(error).__name__}): check CLICKHOUSE_URL and the server.") from None
    except (BusUnavailable, BusUnknown, SettingsInvalid) as reason:
        raise CannotBackUp(str(reason)) from None


async def take_facts_backup(
    clickhouse: ClickHouse, bus: Bus, store: Store, disk: str, clock: Clock, *, although_fewer: bool = False
) -> FactsBackup:
    """Has the server back its facts up. On return that is whole; if it raises, there is no new backup.

    Far fewer facts than there were are not backed up, unless it is said that they rightly are: a server that was lost and made anew has
    few, and a backup of it would be restored before the ones that have all, and these removed as old.
    """
    started_at = clock.now()
    identity = started_at.strftime("%Y%m%dT%H%M%SZ")
    where = place_of(store, identity, disk)
    tables = await _tables(clickhouse)
    offsets = await _committed(bus)
    rows = await _rows(clickhouse)
    if any(offsets.values()) and not any(rows.values()):
        raise CannotBackUp("There are no facts, though events were taken in before: have them made anew with `regulars reporting rebuild`.")
    if not although_fewer:
        _refuse_fewer(rows, await asyncio.to_thread(read_facts, store))
    ((server_version,),) = await clickhouse("SELECT version()")
    count, size = await operate(clickhouse, f"BACKUP DATABASE {named(clickhouse.database)} TO {where}", "BACKUP_CREATED")
    if await _tables(clickhouse) != tables:
        raise CannotBackUp("A rebuild or a migration changed the tables meanwhile: take another backup.")
    if not disk:
        held = await asyncio.to_thread(store.list, f"{DATA}{identity}/")
        count, size = len(held), sum(each.size for each in held)
        if not size:
            raise CannotBackUp(f"What ClickHouse wrote is not in {store.place}: is AWS_ENDPOINT_URL the same store for both?")
    # What came in since is not in it, and what it has of after the offsets lies before these ends.
    states = await partitions(bus)
    ends = {source: state.next_offset for source, state in states.items()}
    last = await events_at(bus, {source: end - 1 for source, end in ends.items()})
    backup = FactsBackup(
        format=FORMAT,
        id=identity,
        started_at=started_at,
        ended_at=clock.now(),
        release=version("regulars"),
        server_version=server_version,
        database=clickhouse.database,
        migration=tables[-1],
        disk=disk,
        files=count,
        size=size,
        positions=[
            Position(*source, offset, ends[source], last.get(source, ""), states[source].first_offset)
            for source, offset in sorted(offsets.items())
        ],
        rows=rows,
    )
    await asyncio.to_thread(write_json, store, f"{NOTES}{identity}.json", backup)
    return backup


async def _rows(clickhouse: ClickHouse) -> dict[str, int]:
    (counts,) = await clickhouse(_COUNT)
    return dict(zip(_FACTS, map(int, counts), strict=True))


def _refuse_fewer(rows: Mapping[str, int], before: FactsContents) -> None:
    """Raises CannotBackUp where a table has less than half of what the newest backup has.

    Rows that came twice are merged away at some time, so a few less are no sign of anything.
    """
    newest = before.backups[-1] if before.backups else None
    for table, count in rows.items():
        if newest is not None and 2 * count < (had := newest.rows.get(table, 0)):
            raise CannotBackUp(
                f"There are {count:,} rows of {table}, and {newest.id} has {had:,}: was the server lost? Restore them (`regulars"
                " restore-facts`) or have them made anew (`regulars reporting rebuild --from-ledger`); `--although-fewer`, if that is all."
            )


async def _tables(clickhouse: ClickHouse) -> list[str]:
    (found,) = await clickhouse(_TABLES)
    if found[0] != "0":
        raise CannotBackUp("A rebuild is under way, or was cut off and is finished by the next start of reporting: wait for its end.")
    return found


async def _committed(bus: Bus) -> dict[TopicPartition, int]:
    """From where the group goes on in each partition: where it never was, it begins at what there is."""
    committed = {lag.source: lag.committed for lag in await bus.lag(GROUP)}
    return {
        source: state.first_offset if (offset := committed.get(source)) is None else offset
        for source, state in (await partitions(bus)).items()
    }


async def partitions(bus: Bus) -> dict[TopicPartition, PartitionState]:
    """All that the group reads, with its dead letters: what was replayed since is replayed again."""
    read = {topic.name for topic in load_topics((files("regulars") / "topics.yaml").read_text("utf-8")) if GROUP in topic.consumers}
    read.add(dead_letters_topic(GROUP))
    return {state.source: state for states in (await bus.topics(read)).values() for state in states}


async def events_at(bus: Bus, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, str]:
    """The ids of the events that have these offsets, of those that are retained."""
    states = await partitions(bus)
    asked = {
        source: offset
        for source, offset in offsets.items()
        if source in states and states[source].first_offset <= offset < states[source].next_offset
    }
    found = {}
    for topic in sorted({source.topic for source in asked}):
        start = {source.partition: asked.get(source, state.next_offset) for source, state in states.items() if source.topic == topic}
        left = {source for source in asked if source.topic == topic}
        async with aclosing(cast("AsyncGenerator[Sequence[Message], None]", bus.read(topic, start))) as batches:
            async for first, *_ in batches:
                if first.source in left and first.offset == asked[first.source]:
                    found[first.source] = first.event_id
                left.discard(first.source)
                if not left:
                    break
    return found


async def operate(clickhouse: ClickHouse, statement: str, done: str) -> tuple[int, int]:
    """Runs BACKUP or RESTORE to its end; how many files and bytes it was.

    It goes on in the server, whatever becomes of a connection; where it is given up here, it is ended there.

    Raises:
        Refused: it failed.
        CannotBackUp: nobody knows how it ended.
    """
    identity = f"regulars-{secrets.token_hex(8)}"
    try:
        # It may hold keys, and is in no error: a refusal is a number.
        await clickhouse(f"{statement} SETTINGS id = {text(identity)} ASYNC", anywhere=True)
        return await _ended(clickhouse, identity, done)
    except BaseException:
        # Nobody waits for it any more: a RESTORE that went on would make its database again after that was dropped.
        with suppress(Refused, httpx.HTTPError):
            await clickhouse(
                f"KILL QUERY WHERE query_id IN (SELECT query_id FROM system.backups WHERE id = {text(identity)}) SYNC", anywhere=True
            )
        raise


async def _ended(clickhouse: ClickHouse, identity: str, done: str) -> tuple[int, int]:
    """Waits; a server that does not answer is asked again for some minutes, for the operation goes on."""
    loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE_SECONDS
    answered = loop.time()
    while True:
        try:
            rows = await clickhouse(_HOW_IT_GOES + text(identity), anywhere=True)
        except (Refused, httpx.TransportError) as error:
            # Without a number the answer is of something in between.
            if (isinstance(error, Refused) and error.code) or loop.time() - answered > _PATIENCE_SECONDS:
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            continue
        answered = loop.time()
        if not rows:
            raise CannotBackUp("ClickHouse was started anew meanwhile, and what it did was cut off: do it again.")
        status, code, count, size = rows[0]
        if status == done:
            return int(count), int(size)
        if "FAILED" in status or "CANCELLED" in status:
            raise Refused(status.lower().replace("_", " "), code)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def refusal(refused: Refused) -> CannotBackUp:
    return CannotBackUp(f"ClickHouse refuses ({refused}): {_WHY.get(refused.code, 'look into its log.')}")


def place_of(store: Store, identity: str, disk: str) -> str:
    """Where the server has it, in its own words, which may hold keys. Raises CannotBackUp."""
    if disk:
        return f"Disk({text(disk)}, {text(DATA + identity)})"
    if isinstance(store, Bucket):
        url, *keys = address_for_others(store.place, os.environ)
        return f"S3({', '.join(map(text, [f'{url}/{DATA}{identity}', *keys]))})"
    raise CannotBackUp("ClickHouse writes to a bucket (--to s3://bucket/prefix), or to a disk of its own, which --disk names.")


def text(value: str) -> str:
    """As a literal of SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def named(identifier: str) -> str:
    """As a name in SQL."""
    return "`" + identifier.replace("\\", "\\\\").replace("`", "\\`") + "`"
