"""The bus: whether it answers, has the topics of this release, and is read."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from kit.bus.connecting import BusSettings, connect, is_over_postgres
from kit.bus.consuming import MAX_OPEN_DEAD_LETTERS
from kit.bus.dead_letters import DeadLetters
from kit.bus.interface import Bus, BusUnavailable, TopicSpec
from kit.bus.topics import Topic, TopicsInvalid, all_specs, dead_letters_topic, load_topics
from kit.settings import SettingsInvalid, load
from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings, without_secrets

BUS_SECONDS = 30.0
# As Kafka says it, one digit each.
LEAST_KAFKA, TESTED_KAFKA = "4.0", "4.1"
LAG_WARNS, LAG_FAILS = 1_000, 100_000
CLIENT_NAME = "regulars-doctor"


async def check_bus(around: Surroundings) -> list[Finding]:
    """All about the bus, where its settings are known."""
    if not around.get("BUS_URL"):
        return []
    try:
        settings = load(BusSettings, around.environ)
        bus = connect(settings, client_name=CLIENT_NAME)
    except SettingsInvalid as invalid:
        return [
            failed("address", "bus", f"The settings of the bus are not usable: {' '.join(invalid.faults)}", "Correct them: docs/bus.md.")
        ]
    what = "The bus in PostgreSQL" if is_over_postgres(settings) else "Kafka"
    where = without_secrets(settings.bus_url) if is_over_postgres(settings) else settings.bus_url.removeprefix("kafka://")
    try:
        topics = load_topics(around.topics_file.read_text("utf-8"))
    except (OSError, TopicsInvalid) as error:
        said = f"The registry of topics cannot be read ({type(error).__name__})."
        return [failed("topics", "topics.yaml", said, "Name it with --topics: the images have it in /app/protos.")]
    try:
        async with asyncio.timeout(BUS_SECONDS), bus:
            found = [ok("address", "bus", f"{what} at {where} answers.")]
            if not is_over_postgres(settings):
                # The server of a database is looked at with the databases.
                found.append(await _version(bus))
            found += await _topics(bus, topics)
            for group in sorted({consumer for topic in topics for consumer in topic.consumers}):
                found.append(await _lag(bus, group, topics))
                found.append(await _dead_letters(bus, group, around))
            return found
    except (BusUnavailable, TimeoutError) as error:
        said = f"{what} at {where} does not answer ({type(error.__cause__ or error).__name__})."
        return [failed("address", "bus", said, "Start it, or correct BUS_URL. Sales go on; reports show what was taken in before.")]


async def _version(bus: Bus) -> Finding:
    release = await bus.release()
    if not release:
        said = f"The brokers do not say which release of Kafka they are; releases are tested with {TESTED_KAFKA}."
        return ok("version", "kafka", said)
    if release < LEAST_KAFKA:
        said = f"Kafka {release} carries the events; releases are tested with {TESTED_KAFKA}."
        return warning("version", "kafka", said, f"Upgrade the brokers to {LEAST_KAFKA} or later when it suits.")
    return ok("version", "kafka", f"Kafka {release} carries the events.")


async def _topics(bus: Bus, topics: Sequence[Topic]) -> list[Finding]:
    wanted = all_specs(topics)
    there = {spec.name: spec for spec in await bus.topics({spec.name for spec in wanted})}
    wrong = [finding for spec in wanted if (finding := _topic(spec, there.get(spec.name))) is not None]
    return wrong or [ok("topics", "bus", f"All {len(wanted)} topics of this release are there, with their partitions and retention.")]


def _topic(wanted: TopicSpec, found: TopicSpec | None) -> Finding | None:
    if found is None:
        return failed(
            "topics", wanted.name, f"The topic {wanted.name} is missing.", "Run `python -m kit.bus create-topics protos/topics.yaml`."
        )
    if found.partitions != wanted.partitions:
        said = f"The topic {wanted.name} has {found.partitions} partitions instead of {wanted.partitions}."
        return failed("topics", wanted.name, said, "It was not made from topics.yaml: see docs/bus.md, `TopicDiffers`.")
    if found.retention < wanted.retention:
        said = f"The topic {wanted.name} keeps events for {_days(found.retention)} instead of {_days(wanted.retention)}."
        return warning("topics", wanted.name, said, "Run `python -m kit.bus create-topics protos/topics.yaml`: it sets the retention.")
    return None


async def _lag(bus: Bus, group: str, topics: Sequence[Topic]) -> Finding:
    lags = [lag for lag in await bus.lag(group) if lag.source.topic != dead_letters_topic(group)]
    behind, is_read = sum(lag.messages for lag in lags), any(lag.owner for lag in lags)
    said = f"{group} is {behind:,} events behind"
    if not lags:
        read = ", ".join(topic.name for topic in topics if group in topic.consumers)
        return warning("lag", group, f"Nobody of the group {group} ever read {read}.", f"Start `python -m {group} consume`.")
    if not is_read:
        advice = f"Start `python -m {group} consume`, or see why it does not connect: reports stand still."
        return (failed if behind else warning)("lag", group, f"{said}, and none of its processes reads.", advice)
    if behind >= LAG_FAILS:
        return failed("lag", group, f"{said}.", f"Add replicas of `{group} consume`, up to the number of partitions; docs/runbooks.")
    if behind >= LAG_WARNS:
        return warning("lag", group, f"{said}.", "Look again in a minute: it should be falling.")
    return ok("lag", group, f"{said}.")


async def _dead_letters(bus: Bus, group: str, around: Surroundings) -> Finding:
    if not await bus.topics({dead_letters_topic(group)}):
        return failed(
            "dead letters", group, f"There is no topic for the dead letters of {group}.", "Run `python -m kit.bus create-topics`."
        )
    letters = DeadLetters(bus, group, around.clock)
    await letters.refresh()
    count = len(letters.open())
    said = f"{count:,} dead letters of {group} wait for a decision"
    advice = "`regulars bus dead-letters list` names them; mend the cause, then replay or discard."
    if count >= MAX_OPEN_DEAD_LETTERS:
        return failed("dead letters", group, f"{said}: it takes in nothing more.", advice)
    if count:
        return warning("dead letters", group, f"{said}.", advice)
    return ok("dead letters", group, f"No dead letters of {group} are open.")


def _days(duration: timedelta) -> str:
    return f"{duration.days} days" if duration >= timedelta(days=2) else f"{duration.total_seconds() / 3600:g} hours"
