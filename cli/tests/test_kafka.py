"""The local Kafka: it comes back where it was, and what it acknowledged with it."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from regulars_cli.up import CannotStart, kafka, kafka_jars
from regulars_cli.up.kafka import LocalKafka

TALK = """
import asyncio, sys
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

async def write(bootstrap):
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("t", 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        await producer.send_and_wait("t", b"kept")

async def read(bootstrap):
    async with AIOKafkaConsumer("t", bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        print((await consumer.getone()).value.decode())

asyncio.run(globals()[sys.argv[1]](sys.argv[2]))
"""


def talk(what: str, bootstrap: str) -> str:
    return subprocess.run((sys.executable, "-c", TALK, what, bootstrap), check=True, capture_output=True, text=True, timeout=60).stdout


def test_what_was_acknowledged_survives_a_kill_and_a_stop_at_the_same_address(tmp_path: Path) -> None:
    broker = LocalKafka(tmp_path / "kafka")
    with broker:
        address = broker.bootstrap
        talk("write", address)
        broker.kill()
        assert not broker.is_ready()
        broker.start()
        assert talk("read", address) == "kept\n"
        broker.stop()
        broker.start()
        assert broker.bootstrap == address
        assert talk("read", address) == "kept\n"
        assert broker.pid is not None
        assert psutil.Process(broker.pid).memory_info().rss < 350 * 2**20
    assert not broker.is_ready()
    assert int(kafka.SETTINGS["log.flush.interval.messages"]) == 1


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"Kafka could not make its data folder .*: .*num\.io\.threads"):
        LocalKafka(tmp_path / "new", settings={"num.io.threads": "none"}).start()
    broker = LocalKafka(tmp_path / "kafka")
    with (
        socket.create_server((kafka.HOST, int(broker.bootstrap.rpartition(":")[2]))),
        pytest.raises(CannotStart, match="ddress already in use"),
    ):
        broker.start()


def test_jars_that_cannot_be_had_are_named_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(CannotStart, match=rf"^Kafka {kafka.VERSION} could not be downloaded from Maven Central: .+\.$") as refused:
        LocalKafka(tmp_path / "kafka").prepare()
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "cache" / "regulars").iterdir()) == [tmp_path / "cache" / "regulars" / f"{kafka_jars.folder().name}.lock"]


def test_several_that_want_the_jars_at_once_download_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jar = tmp_path / "kafka.jar"
    jar.write_bytes(b"")
    calls = tmp_path / "calls"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def resolved() -> list[Path]:
        with calls.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return [jar]

    monkeypatch.setattr(kafka_jars, "_resolved", resolved)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=kafka_jars.download) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [path.name for path in kafka_jars.folder().iterdir()] == ["kafka.jar"]
    assert len(calls.read_text().splitlines()) == 1
