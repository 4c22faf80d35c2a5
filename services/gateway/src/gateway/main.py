"""The gateway's composition root: `python -m gateway serve|migrate|await-migrated|all|seed-demo|issue-key|revoke-key`.

Exit codes: 0 done or stopped; 1 could not be done; 2 wrong settings or arguments; 3 the database is of a newer release.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from gateway.database import MIGRATIONS
from gateway.settings import DatabaseSettings, SeedSettings, Settings
from kit.clock import SystemClock
from kit.db import (
    DatabaseIsNewer,
    NotMigrated,
    answers,
    create_engine,
    forgive_lost_connections,
    migrate,
    wait_until_migrated,
    wait_until_ready,
)
from kit.memory import freeze_start_up
from kit.ops import CannotListen, OpsSettings, operated, stop_when_told
from kit.problems import Refusal
from kit.settings import SettingsInvalid, load
from kit.telemetry import configure_logging

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.services import Services
    from kit.health import Health

DATABASE_WAIT_SECONDS = 30
MIGRATION_WAIT_SECONDS = 300.0
KEYS_UNREADABLE = "A key file cannot be read; `python -m kit.keys DIR` makes those that are missing."


class CannotStart(Exception):
    """Why the gateway does not start, as one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="The public REST API, stores, tills, API keys")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer requests")
    commands.add_parser("migrate", help="bring the database to this release")
    awaiting = commands.add_parser("await-migrated", help="return once the database is at this release or a newer one")
    awaiting.add_argument("--seconds", type=float, default=MIGRATION_WAIT_SECONDS, help="for at most so long (default %(default)s)")
    commands.add_parser("all", help="migrate, then serve: for one machine")
    seed = commands.add_parser("seed-demo", help="make the demo chain, unless it is there, and print its ids and new keys as JSON")
    seed.add_argument("--new-keys", action="store_true", help="revoke the demo's keys and make new ones")
    issue = commands.add_parser("issue-key", help="make a key and print it, once, as JSON")
    issue.add_argument("--name", required=True, help="who holds it")
    issue.add_argument("--role", required=True, choices=("till", "admin"))
    issue.add_argument("--store", action="append", metavar="CODE", help="only for this store; may be given again (default: all stores)")
    revoke = commands.add_parser("revoke-key", help="end a key within two seconds")
    revoke.add_argument("client_id")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except (CannotStart, CannotListen, NotMigrated) as reason:
        print(reason, file=sys.stderr)
        return 1
    except SettingsInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    except DatabaseIsNewer as newer:
        print(newer, file=sys.stderr)
        return 3


def _run(chosen: argparse.Namespace) -> int:
    settings = load(DatabaseSettings)
    configure_logging("gateway", settings.log_level, chosen.command)
    match chosen.command:
        case "migrate":
            uvloop.run(migrate(settings.database_url, MIGRATIONS))
        case "await-migrated":
            uvloop.run(wait_until_migrated(settings.database_url, MIGRATIONS, chosen.seconds))
        case "serve":
            uvloop.run(serve(load(Settings), load(OpsSettings), "serve"))
        case "all":
            serving, ops = load(Settings), load(OpsSettings)
            # In a process of its own, so that what serves does not keep the memory of the tools that migrated.
            migrated = subprocess.run([sys.executable, "-m", "gateway", "migrate"], check=False)
            if migrated.returncode:
                return migrated.returncode
            uvloop.run(serve(serving, ops, "all"))
        case _:
            return uvloop.run(_administer(settings, chosen))
    return 0


async def _administer(settings: DatabaseSettings, chosen: argparse.Namespace) -> int:
    from gateway.api_clients.operations import StoreUnknown, issue_key, revoke_key
    from gateway.demo import seed_demo

    engine = create_engine(settings.database_url, 1, application_name="gateway")
    clock = SystemClock()
    try:
        match chosen.command:
            case "seed-demo":
                # Before anything: a folder with other keys must not revoke the API keys of the one that the database belongs to.
                await _own_fingerprint_key(engine, load(SeedSettings).fingerprint_key_file)
                made: object = await seed_demo(engine, clock, new_keys=chosen.new_keys)
            case "issue-key":
                made = await issue_key(engine, clock, chosen.name, chosen.role, chosen.store)
            case _:
                made = {"revoked": await revoke_key(engine, clock, chosen.client_id)}
    except StoreUnknown as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        await engine.dispose()
    print(json.dumps(made))
    return 0


async def _own_fingerprint_key(engine: "AsyncEngine", file: Path) -> bytes:
    """The key of fingerprints, when it is the one that this database was written with."""
    from kit.crypto import proof_of
    from kit.key_checks import KeyForeign, check_key

    try:
        key = bytes.fromhex(await asyncio.to_thread(file.read_text))
    except (OSError, ValueError) as error:
        raise CannotStart(KEYS_UNREADABLE) from error
    try:
        await check_key(engine, "fingerprint", proof_of(key), file)
    except KeyForeign as foreign:
        raise CannotStart(str(foreign)) from None
    return key


async def serve(settings: Settings, ops: OpsSettings, part: str) -> None:
    """Answers requests until told to stop; then lets those under way end."""
    from gateway.app import create_app
    from gateway.server import Endings, make_server, serve_http

    asyncio.get_running_loop().set_exception_handler(forgive_lost_connections)
    async with operated("gateway", part, ops) as health, open_services(settings, health) as services:
        endings = Endings(settings.connection_seconds, health)
        server = make_server(create_app(services), settings.host, settings.port, services.kpis.close, endings, health.start)
        freeze_start_up()
        await serve_http(server, stop_when_told(health, ops.drain_seconds))


@asynccontextmanager
async def open_services(settings: Settings, health: "Health") -> AsyncIterator["Services"]:
    """The gateway's parts, put together; at the end, writes under way are waited for."""
    from gateway.directory import DATABASE_FAULTS, Directory
    from gateway.member import MemberService
    from gateway.reporting import ReportingService
    from gateway.reports.operations import KpiBoard
    from gateway.services import Services
    from kit.rpc import create_channel
    from kit.tokens import TokenMinter

    clock = SystemClock()
    try:
        minter = TokenMinter(settings.internal_token_private_key_file.read_bytes(), clock)
    except (OSError, ValueError, TypeError) as error:
        raise CannotStart(KEYS_UNREADABLE) from error
    engine = create_engine(settings.database_url, settings.pool_size, application_name="gateway")
    try:
        try:
            await wait_until_ready(engine, DATABASE_WAIT_SECONDS)
        except DATABASE_FAULTS as error:
            raise CannotStart(f"The database of GATEWAY_DATABASE_URL did not answer ({type(error).__name__}).") from error
        health.require("database", partial(answers, engine))
        directory = Directory(engine)
        try:
            await directory.catch_up()
            fingerprint_key = await _own_fingerprint_key(engine, settings.fingerprint_key_file)
        except (Refusal, *DATABASE_FAULTS) as error:
            raise CannotStart("The gateway's tables cannot be read: run `python -m gateway migrate`.") from error
        async with create_channel(settings.member_address) as channel, create_channel(settings.reporting_address) as reporting_channel:
            member = MemberService(channel, minter, fingerprint_key, clock, settings)
            reporting = ReportingService(reporting_channel, minter)
            kpis = KpiBoard(directory, reporting, clock)
            polling = asyncio.create_task(directory.poll())
            try:
                yield Services(engine, clock, directory, member, reporting, kpis, settings.default_programme_id, health)
                await member.drained()
            finally:
                polling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await polling
    finally:
        await engine.dispose()
