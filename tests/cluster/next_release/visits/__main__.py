"""`python -m visits serve|migrate|await-migrated`."""

import asyncio
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kit.clock import SystemClock
from kit.db import answers, create_engine, migrate, wait_until_migrated
from kit.ops import OpsSettings, operated, stop_when_told
from kit.rpc import Server
from kit.settings import env, load
from kit.telemetry import configure_logging
from kit.tokens import TokenVerifier

MIGRATIONS = "visits:migrations"


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """What every subcommand needs."""

    database_url: str = env("VISITS_DATABASE_URL")


@dataclass(frozen=True, slots=True)
class Settings:
    """What serving needs."""

    pool_size: int = env("VISITS_POOL_SIZE")
    token_public_key_file: Path = env("INTERNAL_TOKEN_PUBLIC_KEY_FILE")


async def serve(url: str, settings: Settings, ops: OpsSettings) -> None:
    """Serves its health until it is told to stop."""
    async with operated("visits", "serve", ops) as health:
        engine = create_engine(url, settings.pool_size)
        health.require("database", partial(answers, engine))
        verifier = TokenVerifier(settings.token_public_key_file.read_bytes(), SystemClock())
        server = Server(verifier, [], health=health)
        stopping = stop_when_told(health, ops.drain_seconds)
        await server.start("0.0.0.0:8609")
        health.start()
        await stopping.wait()
        await server.stop(20)
        await engine.dispose()


def main(subcommand: str) -> None:
    """Runs a subcommand."""
    configure_logging("visits", "INFO", subcommand)
    url = load(DatabaseSettings).database_url
    match subcommand:
        case "migrate":
            asyncio.run(migrate(url, MIGRATIONS))
        case "await-migrated":
            asyncio.run(wait_until_migrated(url, MIGRATIONS, 300))
        case _:
            asyncio.run(serve(url, load(Settings), load(OpsSettings)))


if __name__ == "__main__":
    main(sys.argv[1])
