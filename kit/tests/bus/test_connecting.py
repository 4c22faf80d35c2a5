import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from kit.bus.connecting import BusSettings, connect, is_over_postgres
from kit.bus.interface import TopicSpec
from kit.settings import SettingsInvalid, load

TOPICS = """
topics:
  member.sale.v1:
    description: Sales.
    owner: member
    producers: [member]
    consumers: [reporting]
    messages: [regulars.member.v1.SaleRecorded]
    key: the member
    partitions: {partitions}
    retention_days: 30
    classification: pseudonymous
"""


def settings(url: str) -> BusSettings:
    return load(BusSettings, {"BUS_URL": url})


@pytest.mark.parametrize(
    "url,over_postgres",
    [("postgresql://u@h/bus", True), ("postgres://u@h/bus", True), ("postgresql+asyncpg://u@h/bus", True), ("kafka://h:1,h:2", False)],
)
def test_the_url_decides_the_backend(url: str, over_postgres: bool) -> None:  # noqa: FBT001
    assert is_over_postgres(settings(url)) is over_postgres
    assert (type(connect(settings(url), client_name="test")).__name__ == "PostgresBus") is over_postgres


def test_a_url_of_no_backend_is_refused_in_a_sentence() -> None:
    with pytest.raises(SettingsInvalid, match=r"BUS_URL must begin with postgresql:// or kafka://\."):
        connect(settings("amqp://h/bus"), client_name="test")


def run(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kit.bus", *arguments]
    return subprocess.run(command, env={**os.environ, "BUS_URL": url}, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_prepares_an_empty_database_and_does_no_harm_again(make_database: Callable[..., str], tmp_path: Path) -> None:
    url, file = make_database(), tmp_path / "topics.yaml"
    file.write_text(TOPICS.format(partitions=4))
    early = run(url, "await-ready", str(file), "--seconds", "0")
    assert (early.returncode, early.stderr.partition(",")[0]) == (1, "The database is at revision none")
    assert run(url, "migrate").returncode == 0
    early = run(url, "await-ready", str(file), "--seconds", "0")
    assert (early.returncode, early.stderr.partition(":")[0]) == (1, "The bus lacks member.sale.v1, dead-letters.reporting.v1")
    for _ in range(2):
        for arguments in (("migrate",), ("create-topics", str(file)), ("await-ready", str(file), "--seconds", "0")):
            done = run(url, *arguments)
            assert done.returncode == 0, done.stderr

    async def topics() -> dict[str, TopicSpec]:
        async with connect(settings(url), client_name="test") as bus:
            return {spec.name: spec for spec in await bus.topics()}

    found = asyncio.run(topics())
    assert found.keys() == {"member.sale.v1", "dead-letters.reporting.v1"}
    assert found["member.sale.v1"] == TopicSpec("member.sale.v1", 4, timedelta(days=30))

    file.write_text(TOPICS.format(partitions=8))
    refused = run(url, "create-topics", str(file))
    assert (refused.returncode, refused.stderr.splitlines()[-1:]) == (1, ["member.sale.v1 exists with 4 partitions, not 8."])


def test_the_command_says_in_a_sentence_what_is_missing(tmp_path: Path) -> None:
    assert run("http://h", "migrate").returncode == 2
    assert run("kafka://h:1", "migrate").returncode == 0
    missing = run("kafka://h:1", "create-topics", str(tmp_path / "none.yaml"))
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr
