"""The reporting service's composition root: everything it is made of is put together here.

    python -m reporting serve             serve gRPC; the database must have been migrated
    python -m reporting consume           take facts from the bus; likewise
    python -m reporting migrate           bring the database to this release
    python -m reporting await-migrated    return once the database is at this release or a newer one
    python -m reporting all               all of them in one process; with --no-migrate, the first two

The embedded engine is one process's: there, it is `all`.

Exit codes: 0 done or stopped; 1 could not be done; 2 wrong settings or arguments; 3 the database is of a newer release.
"""

import argparse
import asyncio
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import uvloop

from kit.bus.connecting import BusSettings, connect
from kit.bus.consuming import TooManyDeadLetters, consume
from kit.bus.interface import Bus, BusUnavailable
from kit.clock import SystemClock
from kit.health import Health
from kit.metrics import CONSUMER_BUS_AWAY
from kit.metrics import GROUP as GROUPS
from kit.ops import CannotListen, OpsSettings, operated, stop_when_told
from kit.settings import SettingsInvalid, load
from kit.telemetry import configure_logging
from kit.waiting import wait_at_most
from reporting.clickhouse import (
    ClickHouse,
    ClickHouseUnavailable,
    DatabaseIsNewer,
    DataFolderInUse,
    migrate,
    migrations_done,
    newest_migration,
    open_clickhouse,
)
from reporting.disks import watch_disks
from reporting.facts.consumers import GATHER_SECONDS, GROUP, MAX_MESSAGES, TOPICS, FactsHandler
from reporting.queries.operations import Freshness
from reporting.settings import Settings, StorageSettings

log = logging.getLogger(__name__)

DATABASE_WAIT_SECONDS = 30
MIGRATION_WAIT_SECONDS = 300.0
DRAIN_SECONDS = 20
BUS_PAUSE_SECONDS = 1.0
DEAD_LETTERS_PAUSE_SECONDS = 5.0
CLIENT_NAME = "regulars-reporting"


class CannotStart(Exception):
    """Why the service does not start, as one sentence."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a subcommand does, in this order; the last two at once until it is told to stop."""

    await_migrated_seconds: float | None = None
    migrate: bool = False
    serve: bool = False
    consume: bool = False

    @property
    def name(self) -> str:
        """What operators call it; empty: it does not go on."""
        if self.serve and self.consume:
            return "all"
        return "serve" if self.serve else "consume" if self.consume else ""


def main(arguments: list[str]) -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(prog="reporting", description="The reporting service.")
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name in ("serve", "consume", "migrate"):
        subcommands.add_parser(name)
    subcommands.add_parser("all").add_argument("--no-migrate", action="store_true")
    subcommands.add_parser("await-migrated").add_argument("--seconds", type=float, default=MIGRATION_WAIT_SECONDS)
    options = parser.parse_args(arguments)
    match options.subcommand:
        case "all":
            parts = Parts(migrate=not options.no_migrate, serve=True, consume=True)
        case "await-migrated":
            parts = Parts(await_migrated_seconds=options.seconds)
        case name:
            parts = Parts(**{name: True})
    try:
        storage = load(StorageSettings)
        configure_logging("reporting", storage.log_level, options.subcommand)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(parts, storage))
    except SettingsInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    except DatabaseIsNewer as newer:
        print(newer, file=sys.stderr)
        return 3
    except (CannotStart, CannotListen, DataFolderInUse) as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


async def run(parts: Parts, storage: StorageSettings) -> None:
    """Does the parts; serves and consumes until SIGTERM or SIGINT, then finishes what is under way."""
    if not parts.name:
        async with open_clickhouse(storage) as clickhouse:
            await _prepare(parts, clickhouse)
        return
    ops = load(OpsSettings)
    async with operated("reporting", parts.name, ops) as health, open_clickhouse(storage) as clickhouse:
        await _prepare(parts, clickhouse)
        await _go_on(parts, storage, clickhouse, health, ops.drain_seconds)


async def _prepare(parts: Parts, clickhouse: ClickHouse) -> None:
    """Does what has an end."""
    if parts.await_migrated_seconds is not None:
        await _await_migrated(clickhouse, parts.await_migrated_seconds)
        return
    await _answers(clickhouse)
    if parts.migrate:
        log.info("migrated", extra={"migrations": await migrate(clickhouse)})


async def _go_on(parts: Parts, storage: StorageSettings, clickhouse: ClickHouse, health: Health, drain_seconds: int) -> None:
    done = await migrations_done(clickhouse)
    if newest_migration() not in done:
        raise CannotStart(
            f"The database is at {done[-1] if done else 'no migration'}: run `python -m reporting migrate` to bring it to "
            f"{newest_migration()}."
        )
    health.require("clickhouse", clickhouse.answers)
    # Nobody sends work to what only consumes: it need not say beforehand that it goes.
    stopping = stop_when_told(health, drain_seconds if parts.serve else 0)
    handler = FactsHandler(clickhouse)
    tasks, watching = [], []
    if parts.consume:
        tasks.append(asyncio.create_task(_consume(clickhouse, handler, stopping, health, serves=parts.serve)))
        watching.append(asyncio.create_task(watch_disks(clickhouse)))
    if parts.serve:
        tasks.append(asyncio.create_task(_serve(clickhouse, handler, stopping, health, alone=not storage.clickhouse_url)))
    try:
        # One that fails ends the process; the other finishes what is under way.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        stopping.set()
        for task in watching:
            task.cancel()
        await asyncio.wait([*tasks, *watching])
    for task in tasks:
        task.result()


async def _serve(clickhouse: ClickHouse, handler: FactsHandler, stopping: asyncio.Event, health: Health, *, alone: bool) -> None:
    from kit.memory import freeze_start_up
    from kit.rpc import Server, create_channel
    from kit.tokens import TokenVerifier
    from regulars.reporting.v1.rebuild_service_pb2_grpc import add_RebuildServiceServicer_to_server
    from regulars.reporting.v1.reconcile_service_pb2_grpc import add_ReconcileServiceServicer_to_server
    from regulars.reporting.v1.report_service_pb2_grpc import add_ReportServiceServicer_to_server
    from reporting.queries.rpc import ReportServicer
    from reporting.rebuilds.ledger import export_member
    from reporting.rebuilds.operations import Rebuilder
    from reporting.rebuilds.rpc import RebuildServicer
    from reporting.reconcile.rpc import ReconcileServicer

    settings, bus_settings, clock = load(Settings), load(BusSettings), SystemClock()
    try:
        verifier = TokenVerifier(settings.token_public_key_file.read_bytes(), clock)
    except (OSError, ValueError, TypeError) as error:
        raise CannotStart(f"A key file is not usable: {error}") from error
    open_bus = partial(connect, bus_settings, client_name=CLIENT_NAME)
    async with create_channel(settings.member_address) as channel:
        rebuilder = Rebuilder(
            clickhouse,
            handler,
            open_bus,
            partial(export_member, channel),
            clock,
            alone=alone,
        )
        server = Server(
            verifier,
            [
                partial(add_ReportServiceServicer_to_server, ReportServicer(clickhouse)),
                partial(add_RebuildServiceServicer_to_server, RebuildServicer(rebuilder)),
                partial(add_ReconcileServiceServicer_to_server, ReconcileServicer(clickhouse, open_bus, channel, clock)),
            ],
            max_connection_age_seconds=settings.max_connection_age_seconds,
            health=health,
        )
        await rebuilder.recover()
        freeze_start_up()
        try:
            await server.start(settings.listen)
        except RuntimeError as error:
            raise CannotStart(f"{settings.listen} cannot be listened on: is another process there?") from error
        health.start()
        log.info("serving", extra={"listen": settings.listen, "migration": newest_migration()})
        await stopping.wait()
        log.info("stopping")
        await rebuilder.close()
        await server.stop(DRAIN_SECONDS)


async def _consume(clickhouse: ClickHouse, handler: FactsHandler, stopping: asyncio.Event, health: Health, *, serves: bool) -> None:
    settings, is_away, was_reached = load(BusSettings), False, False

    async def reached() -> str:
        return "" if was_reached else "not reached yet"

    GROUPS.declare([GROUP])
    if not serves:
        # Reports can be had while the bus is away.
        health.require("bus", reached)
        health.start()
    while not stopping.is_set():
        try:
            async with connect(settings, client_name=CLIENT_NAME) as bus:
                was_reached = True
                with suppress(ClickHouseUnavailable):
                    await _warn_of_lost_facts(clickhouse, bus)
                log.info("consuming", extra={"topics": TOPICS})
                await consume(
                    bus,
                    GROUP,
                    TOPICS,
                    handler,
                    stop=stopping,
                    clock=SystemClock(),
                    together=True,
                    max_messages=MAX_MESSAGES,
                    gather_seconds=GATHER_SECONDS,
                )
        except BusUnavailable as away:
            CONSUMER_BUS_AWAY.of(GROUP).set(1)
            if not is_away:
                about = {"group": GROUP, "error": type(away.__cause__ or away).__name__}
                log.warning("the bus is away; no facts come in until it is back", extra=about)
            is_away = True
            await wait_at_most(stopping, BUS_PAUSE_SECONDS)
        except TooManyDeadLetters as stopped:
            if not serves:
                raise CannotStart(str(stopped)) from None
            # Reports can still be had, of what was taken in before.
            log.warning("no facts come in until dead letters are replayed or discarded", extra={"group": GROUP})
            await wait_at_most(stopping, DEAD_LETTERS_PAUSE_SECONDS)


async def _warn_of_lost_facts(clickhouse: ClickHouse, bus: Bus) -> None:
    """Says so when there is not one fact though some were taken in before: the data was removed, and reports would show zeros."""
    if await Freshness(clickhouse).newest() is None and any(lag.committed for lag in await bus.lag(GROUP)):
        log.warning("there are no facts, though events were taken in before: have them made anew with `regulars reporting rebuild`")


async def _await_migrated(clickhouse: ClickHouse, seconds: float) -> None:
    """Returns when the database is at this release or a newer one; raises CannotStart when it was not in that time."""
    give_up_at = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            done, state = await migrations_done(clickhouse), ""
        except ClickHouseUnavailable as error:
            done, state = (), f"does not answer ({error})"
        if done and done[-1] >= newest_migration():
            return
        if asyncio.get_running_loop().time() >= give_up_at:
            state = state or f"is at {done[-1] if done else 'no migration'}"
            raise CannotStart(f"ClickHouse {state}, and this release needs {newest_migration()}: run `python -m reporting migrate`.")
        await asyncio.sleep(0.5)


async def _answers(clickhouse: ClickHouse) -> None:
    """Returns when ClickHouse answers; raises CannotStart when it has not for a while."""
    deadline = asyncio.get_running_loop().time() + DATABASE_WAIT_SECONDS
    while True:
        try:
            await clickhouse.query("SELECT 1")
        except ClickHouseUnavailable as error:
            if asyncio.get_running_loop().time() > deadline:
                raise CannotStart(f"ClickHouse does not answer ({error}): check CLICKHOUSE_URL and the server.") from error
            await asyncio.sleep(0.5)
        else:
            return
