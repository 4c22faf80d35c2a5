"""The member service's composition root: everything it is made of is put together here.

    python -m member serve                  serve gRPC; the database must have been migrated
    python -m member relay                  publish the events of the outbox on the bus; of several, one is active
    python -m member migrate                bring the database to this release
    python -m member await-migrated         return once the database is at this release or a newer one; for pods that start beside `migrate`
    python -m member all                    migrate, then serve and relay; with --no-migrate, without the first
    python -m member apply-programme FILE…  add a version of each programme, without going through the API;
                                            with --if-missing, only of those that have none
    python -m member rewrap-keys            after rotating the key-encryption key: move every member's data key under the new one

Exit codes: 0 done or stopped; 1 could not be done; 2 wrong settings or arguments; 3 the database is of a newer release.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kit.bus.connecting import BusSettings, connect
from kit.bus.interface import Bus
from kit.health import Health
from kit.ops import CannotListen, OpsSettings, operated, stop_when_told
from kit.settings import SettingsInvalid, env, load
from kit.telemetry import configure_logging

if TYPE_CHECKING:
    from kit.bus.relay import Relay
    from kit.clock import Clock

log = logging.getLogger(__name__)

DATABASE_WAIT_SECONDS = 30
MIGRATION_WAIT_SECONDS = 300.0
DRAIN_SECONDS = 20
# As operators see it in PostgreSQL and on the bus.
RELAY = "regulars-member-relay"


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """What every subcommand needs."""

    database_url: str = env("MEMBER_DATABASE_URL")
    log_level: str = env("LOG_LEVEL", "INFO")


@dataclass(frozen=True, slots=True)
class Settings:
    """What serving needs."""

    database_url: str = env("MEMBER_DATABASE_URL")
    listen: str = env("MEMBER_LISTEN", "127.0.0.1:8601")
    pool_size: int = env("MEMBER_POOL_SIZE", "8")
    # So that replicas that came later get calls; 0: connections last.
    max_connection_age_seconds: int = env("RPC_MAX_CONNECTION_AGE_SECONDS", "0")
    token_public_key_file: Path = env("INTERNAL_TOKEN_PUBLIC_KEY_FILE")
    personal_data_key_file: Path = env("PERSONAL_DATA_KEY_FILE")
    log_level: str = env("LOG_LEVEL", "INFO")


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """What relaying needs."""

    # How often the leading relay has the ledger proven; 0: never.
    ledger_check_hours: int = env("LEDGER_CHECK_HOURS", "24")


class CannotStart(Exception):
    """Why the service does not start, as one sentence."""


def main(arguments: list[str]) -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(prog="member", description="The member service.")
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name in ("serve", "relay", "migrate", "rewrap-keys"):
        subcommands.add_parser(name)
    subcommands.add_parser("all").add_argument("--no-migrate", action="store_true")
    subcommands.add_parser("await-migrated").add_argument("--seconds", type=float, default=MIGRATION_WAIT_SECONDS)
    apply = subcommands.add_parser("apply-programme")
    apply.add_argument("files", type=Path, nargs="+", metavar="FILE")
    apply.add_argument("--if-missing", action="store_true")
    options = parser.parse_args(arguments)
    try:
        match options.subcommand:
            case "migrate":
                return _migrate(load(DatabaseSettings))
            case "await-migrated":
                return _await_migrated(load(DatabaseSettings), options.seconds)
            case "apply-programme":
                return _apply_programmes(load(DatabaseSettings), options.files, if_missing=options.if_missing)
            case "rewrap-keys":
                return _rewrap_keys(load(Settings))
            case "relay":
                return _run(relay(load(DatabaseSettings), load(OpsSettings), load(BusSettings), load(RelaySettings)), "relay")
            case "all":
                given = load(Settings), load(OpsSettings), load(BusSettings), load(RelaySettings)
                return (0 if options.no_migrate else _migrate_aside(load(DatabaseSettings))) or _run(serve(*given), "all")
            case _:
                return _run(serve(load(Settings), load(OpsSettings)), "serve")
    except SettingsInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    except (CannotStart, CannotListen) as reason:
        print(reason, file=sys.stderr)
        return 1


def _migrate_aside(settings: DatabaseSettings) -> int:
    """Migrates in a process of its own, so that what serves does not keep the memory of the tools that migrated."""
    # What both need is imported once.
    import kit.db  # noqa: F401

    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _migrate(settings)
        except CannotStart as reason:
            print(reason, file=sys.stderr, flush=True)
        except Exception:
            log.exception("migration failed")
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _migrate(settings: DatabaseSettings) -> int:
    from kit.db import DatabaseIsNewer, may_retry, migrate
    from member.database import MIGRATIONS

    configure_logging("member", settings.log_level, "migrate")
    # It tells the story of its plugins; what was done is one line here.
    logging.getLogger("alembic").setLevel(logging.WARNING)

    async def run() -> None:
        await _database_answers(settings.database_url)
        done = await migrate(settings.database_url, MIGRATIONS)
        log.info("migrated", extra={"before": done.before, "after": done.after})

    try:
        asyncio.run(run())
    except DatabaseIsNewer as newer:
        print(newer, file=sys.stderr, flush=True)
        return 3
    except Exception as error:
        if may_retry(error):
            raise CannotStart(f"The migration could not have its locks or its connection ({type(error).__name__}): try again.") from error
        raise
    return 0


def _await_migrated(settings: DatabaseSettings, seconds: float) -> int:
    from kit.db import NotMigrated, wait_until_migrated
    from member.database import MIGRATIONS

    try:
        asyncio.run(wait_until_migrated(settings.database_url, MIGRATIONS, seconds))
    except NotMigrated as reason:
        raise CannotStart(str(reason)) from None
    return 0


def _apply_programmes(settings: DatabaseSettings, files: list[Path], *, if_missing: bool) -> int:
    from kit.clock import SystemClock
    from kit.db import create_engine, raw, transaction
    from kit.problems import Refusal
    from member.programmes.files import ProgrammeFileUnreadable, read_definition
    from member.programmes.operations import apply_programme, load_book

    async def run() -> None:
        engine = create_engine(settings.database_url, 1)
        try:
            for file in files:
                definition = read_definition(file)
                async with transaction(engine) as connection:
                    known = (await load_book(raw(connection))).versions if if_missing else {}
                    if isinstance(definition, dict) and definition.get("programme_id") in known:
                        continue
                    try:
                        proposal = await apply_programme(raw(connection), definition, applied_by="operator", now=SystemClock().now())
                    except Refusal as refusal:
                        faults = "".join(f"\n  {error.pointer or '/'}: {error.detail}" for error in refusal.errors)
                        raise CannotStart(f"{file}: {refusal.detail}{faults}") from None
                version, already = proposal.version, "" if proposal.is_new else " already"
                print(f"{version.programme_id} is at version {version.version}{already}, from {version.effective_from}.")
        finally:
            await engine.dispose()

    try:
        asyncio.run(run())
    except ProgrammeFileUnreadable as unreadable:
        raise CannotStart(str(unreadable)) from None
    return 0


def _rewrap_keys(settings: Settings) -> int:
    from kit.crypto import KeyFileInvalid, KeyUnknown, PersonalDataKeys, SealBroken
    from kit.db import create_engine
    from member.members.operations import rewrap_data_keys

    async def run() -> int:
        engine = create_engine(settings.database_url, 1)
        try:
            return await rewrap_data_keys(engine, PersonalDataKeys.load(settings.personal_data_key_file))
        finally:
            await engine.dispose()

    try:
        moved = asyncio.run(run())
    except SealBroken as broken:
        raise CannotStart("A data key does not open under its key-encryption key: nothing of its batch was changed.") from broken
    except (KeyFileInvalid, KeyUnknown) as error:
        raise CannotStart(str(error)) from error
    print(f"{moved} data keys were moved under the present key-encryption key.")
    return 0


def _run(work: Coroutine[None, None, None], part: str) -> int:
    import uvloop

    configure_logging("member", load(DatabaseSettings).log_level, part)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
    return 0


async def relay(settings: DatabaseSettings, ops: OpsSettings, bus: BusSettings, relaying: RelaySettings) -> None:
    """Relays until SIGTERM or SIGINT; the batch under way is finished."""
    from kit.bus.relay import Relay
    from kit.clock import SystemClock
    from kit.memory import freeze_start_up

    open_bus = _bus_of(bus)
    async with operated("member", "relay", ops) as health:
        await _is_migrated(settings.database_url)
        clock = SystemClock()
        own_relay = Relay(settings.database_url, open_bus, clock, name=RELAY)
        health.require("relay", own_relay.answers)
        # Nobody sends it work: it need not say beforehand that it goes.
        stopping = _until_told_to_stop(health, 0)
        freeze_start_up()
        health.start()
        async with _checking(settings.database_url, clock, own_relay, relaying):
            await own_relay.run(stopping)
        log.info("stopping")


@asynccontextmanager
async def _checking(url: str, clock: "Clock", relay: "Relay", settings: RelaySettings) -> AsyncIterator[None]:
    """Within the block the ledger is proven now and then, while the relay leads."""
    from kit.db import create_engine
    from member.points.checking import keep_checking

    if not settings.ledger_check_hours:
        yield
        return
    engine = create_engine(url, 1, application_name="regulars-member-check")
    checking = asyncio.create_task(keep_checking(engine, clock, lambda: relay.state().is_leading, settings.ledger_check_hours * 3600))
    try:
        yield
    finally:
        checking.cancel()
        await asyncio.wait([checking])
        await engine.dispose()


async def serve(settings: Settings, ops: OpsSettings, bus: BusSettings | None = None, relaying: RelaySettings | None = None) -> None:
    """Serves until SIGTERM or SIGINT, and with a bus relays; then takes no new calls and finishes those under way."""
    async with operated("member", "serve" if bus is None else "all", ops) as health:
        await _serve(settings, health, ops.drain_seconds, bus, relaying)


async def _serve(
    settings: Settings, health: Health, drain_seconds: int, bus: BusSettings | None, relay_settings: RelaySettings | None
) -> None:
    from kit.bus.relay import Relay
    from kit.clock import SystemClock
    from kit.crypto import KeyFileInvalid, KeyUnknown, PersonalDataKeys
    from kit.db import answers, create_engine
    from kit.key_checks import KeyForeign
    from kit.memory import freeze_start_up
    from kit.outbox import Nudges
    from kit.rpc import Server
    from kit.tokens import TokenVerifier
    from member.exports.rpc import ExportServicer
    from member.members.operations import check_keys
    from member.members.rpc import MemberServicer
    from member.partitions import ensure_partitions, keep_partitions
    from member.programmes.operations import Books
    from member.programmes.rpc import ProgrammeServicer
    from member.wallet.rpc import WalletServicer
    from regulars.member.v1.export_service_pb2_grpc import add_ExportServiceServicer_to_server
    from regulars.member.v1.member_service_pb2_grpc import add_MemberServiceServicer_to_server
    from regulars.member.v1.programme_service_pb2_grpc import add_ProgrammeServiceServicer_to_server
    from regulars.member.v1.wallet_service_pb2_grpc import add_WalletServiceServicer_to_server

    clock = SystemClock()
    try:
        keys = PersonalDataKeys.load(settings.personal_data_key_file)
        verifier = TokenVerifier(settings.token_public_key_file.read_bytes(), clock)
    except (KeyFileInvalid, OSError, ValueError, TypeError) as error:
        raise CannotStart(f"A key file is not usable: {error}") from error

    open_bus = _bus_of(bus) if bus is not None else None
    engine = create_engine(settings.database_url, settings.pool_size, application_name="regulars-member")
    revision = await _is_migrated(settings.database_url)
    try:
        await check_keys(engine, keys, settings.personal_data_key_file)
    except KeyForeign as foreign:
        raise CannotStart(str(foreign)) from None
    except KeyUnknown as unknown:
        raise CannotStart(
            f"{settings.personal_data_key_file} lacks the key-encryption key {unknown.kek_id} of some members: put it under `retired_keks`."
        ) from None
    await ensure_partitions(engine, clock.now())

    # Of all relays one is active, perhaps in another process: whoever writes tells that one.
    nudge: Callable[[], None] = Nudges(engine)
    health.require("database", partial(answers, engine))
    own_relay = Relay(settings.database_url, open_bus, clock, name=RELAY, others=nudge) if open_bus is not None else None
    if own_relay is not None:
        nudge = own_relay.nudge
    books = Books()
    service = "/regulars.member.v1"
    server = Server(
        verifier,
        [
            partial(add_MemberServiceServicer_to_server, MemberServicer(engine, clock, verifier, keys, books, nudge)),
            partial(add_ProgrammeServiceServicer_to_server, ProgrammeServicer(engine, clock)),
            partial(add_WalletServiceServicer_to_server, WalletServicer(engine, clock, verifier, books, nudge)),
            partial(add_ExportServiceServicer_to_server, ExportServicer(engine, clock, keys, books)),
        ],
        tokens_inside=[
            f"{service}.MemberService/SignUpMembers",
            f"{service}.MemberService/ChangeMember",
            f"{service}.WalletService/ExecuteCommands",
        ],
        max_connection_age_seconds=settings.max_connection_age_seconds,
        health=health,
    )
    stopping, drained = _until_told_to_stop(health, drain_seconds), asyncio.Event()
    relaying = asyncio.create_task(own_relay.run(drained)) if own_relay is not None else None
    months = asyncio.create_task(keep_partitions(engine, clock))
    freeze_start_up()
    try:
        async with AsyncExitStack() as beside:
            if own_relay is not None and relay_settings is not None:
                await beside.enter_async_context(_checking(settings.database_url, clock, own_relay, relay_settings))
            try:
                await server.start(settings.listen)
            except RuntimeError as error:
                raise CannotStart(f"{settings.listen} cannot be listened on: is another process there?") from error
            health.start()
            log.info("serving", extra={"listen": settings.listen, "revision": revision})
            await stopping.wait()
            log.info("stopping")
            await server.stop(DRAIN_SECONDS)
    finally:
        drained.set()
        if relaying is not None:
            await relaying
        months.cancel()
        await engine.dispose()


def _until_told_to_stop(health: Health, drain_seconds: int) -> asyncio.Event:
    """Set when the process shall stop."""
    from kit.db import forgive_lost_connections

    asyncio.get_running_loop().set_exception_handler(forgive_lost_connections)
    return stop_when_told(health, drain_seconds)


def _bus_of(settings: BusSettings) -> Callable[[], Bus]:
    """What makes connections to the bus. Raises SettingsInvalid at once when there can be none by these settings."""
    open_bus = partial(connect, settings, client_name=RELAY)
    open_bus()
    return open_bus


async def _is_migrated(url: str) -> str:
    """The database's revision, once it answers; raises CannotStart when it is older than this release needs."""
    from kit.db import create_engine, current_revision, newest_revision
    from member.database import MIGRATIONS

    await _database_answers(url)
    engine = create_engine(url, 1)
    try:
        revision = await current_revision(engine)
    finally:
        await engine.dispose()
    needed = newest_revision(MIGRATIONS)
    if revision is None or revision < needed:
        raise CannotStart(f"The database is at revision {revision or 'none'}; run `python -m member migrate` to bring it to {needed}.")
    return revision


async def _database_answers(url: str) -> None:
    """Returns when the database answers; raises CannotStart when it has not for a while."""
    from kit.db import create_engine, wait_until_ready

    engine = create_engine(url, 1)
    try:
        await wait_until_ready(engine, DATABASE_WAIT_SECONDS)
    except Exception as error:
        raise CannotStart(f"The database does not answer ({type(error).__name__}): check MEMBER_DATABASE_URL and the server.") from error
    finally:
        await engine.dispose()
