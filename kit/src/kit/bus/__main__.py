"""Prepares the bus of the settings (`kit.bus.connecting`); both may be run again at any time.

    python -m kit.bus migrate               bring the database of the PostgreSQL bus to this release; Kafka needs nothing
    python -m kit.bus create-topics FILE    create the topics of a topics.yaml, and those of its consumers' dead letters
    python -m kit.bus await-ready FILE      return once both were done; for pods that start beside them

Exit codes: 0 done; 1 could not be done; 2 wrong settings or arguments; 3 the database is of a newer release.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kit.bus.connecting import BusSettings, connect, is_over_postgres
from kit.bus.interface import BusUnavailable, TopicDiffers, TopicSpec
from kit.bus.topics import TopicsInvalid, all_specs, load_topics
from kit.settings import SettingsInvalid, load
from kit.telemetry import configure_logging

log = logging.getLogger(__name__)

BUS_WAIT_SECONDS = 30
READY_WAIT_SECONDS = 300.0
READY_POLL_SECONDS = 0.5


class CannotPrepare(Exception):
    """Why it was not done, as one sentence."""


def main(arguments: list[str]) -> int:
    """Runs a subcommand and returns the exit code."""
    parser = argparse.ArgumentParser(prog="kit.bus", description="Prepares the bus.")
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    subcommands.add_parser("migrate")
    subcommands.add_parser("create-topics").add_argument("file", type=Path, metavar="FILE")
    awaiting = subcommands.add_parser("await-ready")
    awaiting.add_argument("file", type=Path, metavar="FILE")
    awaiting.add_argument("--seconds", type=float, default=READY_WAIT_SECONDS)
    options = parser.parse_args(arguments)
    try:
        settings = load(BusSettings)
        configure_logging("bus", "INFO")
        if options.subcommand == "migrate":
            return _migrate(settings)
        if options.subcommand == "await-ready":
            asyncio.run(_await_ready(settings, _topics_in(options.file), options.seconds))
        else:
            _create_topics(settings, _topics_in(options.file))
    except SettingsInvalid as invalid:
        print(invalid, file=sys.stderr)
        return 2
    except (CannotPrepare, TopicsInvalid, TopicDiffers, BusUnavailable) as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


def _migrate(settings: BusSettings) -> int:
    if not is_over_postgres(settings):
        return 0
    from kit.bus.postgres import MIGRATIONS
    from kit.db import DatabaseIsNewer, create_engine, may_retry, migrate, wait_until_ready

    # It tells the story of its plugins; what was done is one line here.
    logging.getLogger("alembic").setLevel(logging.WARNING)

    async def run() -> None:
        engine = create_engine(settings.bus_url, 1)
        try:
            await wait_until_ready(engine, BUS_WAIT_SECONDS)
        finally:
            await engine.dispose()
        done = await migrate(settings.bus_url, MIGRATIONS)
        log.info("migrated", extra={"before": done.before, "after": done.after})

    try:
        asyncio.run(run())
    except DatabaseIsNewer as newer:
        print(newer, file=sys.stderr)
        return 3
    except Exception as error:
        if may_retry(error):
            raise CannotPrepare(f"The migration could not have its locks or its connection ({type(error).__name__}): try again.") from error
        raise
    return 0


def _topics_in(file: Path) -> Sequence[TopicSpec]:
    try:
        return all_specs(load_topics(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise CannotPrepare(f"{file} cannot be read: {error.strerror}.") from error


async def _await_ready(settings: BusSettings, specs: Sequence[TopicSpec], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + seconds
    if is_over_postgres(settings):
        from kit.bus.postgres import MIGRATIONS
        from kit.db import NotMigrated, wait_until_migrated

        try:
            await wait_until_migrated(settings.bus_url, MIGRATIONS, seconds)
        except NotMigrated as reason:
            raise CannotPrepare(str(reason)) from None
    while True:
        missing = ["its brokers"]
        with suppress(BusUnavailable):
            async with connect(settings, client_name="await-ready") as bus:
                there = {spec.name for spec in await bus.topics({spec.name for spec in specs})}
            missing = [spec.name for spec in specs if spec.name not in there]
        if not missing:
            return
        if loop.time() >= give_up_at:
            raise CannotPrepare(f"The bus lacks {', '.join(missing)}: run `python -m kit.bus create-topics`, or see why that did not end.")
        await asyncio.sleep(READY_POLL_SECONDS)


def _create_topics(settings: BusSettings, specs: Sequence[TopicSpec]) -> None:
    async def run() -> None:
        async with connect(settings, client_name="create-topics") as bus:
            await bus.create_topics(specs)

    asyncio.run(run())
    log.info("topics are there", extra={"topics": [spec.name for spec in specs]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
