"""`regulars up` as it is: the whole system on this machine, from an empty folder."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from regulars_cli import main as command
from regulars_cli.up.installation import Installation
from tests.integration.system import wait_until


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
    return number


@contextmanager
def running(var: Path, port: int, kafka: str = "") -> Iterator["subprocess.Popen[str]"]:
    """The supervisor in a process of its own, as on a terminal."""
    arguments = [sys.executable, "-m", "regulars_cli.main", "up", "--var", str(var), "--port", str(port), "--kafka", kafka]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: "subprocess.Popen[str]", pattern: str) -> list[str]:
    """What it prints, up to the line that `pattern` is in; the test's timeout bounds the wait."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if re.search(pattern, line):
            return lines
    pytest.fail("it ended, after:\n" + "\n".join(lines))


def run_curl(line: str) -> tuple[int, bytes, bool]:
    """Do what the printed command does: status, body, and whether the answer is a replay. The shell is asked, as curl may be missing."""
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    in_shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(show)} {line.removeprefix('curl ')}"
    arguments = json.loads(subprocess.run(["sh", "-c", in_shell], capture_output=True, check=True).stdout)
    url = next(word for word in arguments if word.startswith("http://"))
    headers = dict(arguments[i + 1].split(": ", 1) for i, word in enumerate(arguments) if word == "-H")
    request = urllib.request.Request(url, arguments[arguments.index("-d") + 1].encode(), headers)  # noqa: S310 - our own address
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return answer.status, answer.read(), answer.headers.get("Idempotent-Replayed") == "true"


@pytest.mark.timeout(180)
def test_a_sale_survives_kills_and_a_restart(reachable_path: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    var = reachable_path / "var"
    with running(var, port) as process:
        printed = lines_until(process, "^curl ")
        up = json.loads((var / "up.json").read_text())
        assert up["url"] == f"http://127.0.0.1:{port}"
        assert up["pid"] == process.pid
        assert (var / "up.json").stat().st_mode & 0o777 == 0o600
        assert sum(up["till_key"] in line for line in printed) == 2  # shown, and in the command
        assert any(up["admin_key"] in line for line in printed)

        sale = printed[-1]
        status, first, replayed = run_curl(sale)
        assert (status, replayed) == (201, False)
        assert json.loads(first)["payable_minor"] == 19990

        for name in ("member", "gateway", "reporting", "postgres"):
            pid = next(p.identity.pid for p in Installation(var).running_processes() if p.name == name)
            os.kill(pid, signal.SIGKILL)
            lines_until(process, f"^{name} was killed by SIGKILL")
            lines_until(process, f"^{name} is back")

        assert command.main(["down", "--var", str(var)]) == 0
        assert process.wait() == 0
        assert Installation(var).running_processes() == []

    with running(var, port) as process:
        again = lines_until(process, "^curl ")
        assert not any(up["till_key"] in line or up["admin_key"] in line for line in again), "keys are shown once"
        assert json.loads((var / "up.json").read_text())["till_key"] == up["till_key"]
        assert run_curl(sale) == (201, first, True)
        status, _, replayed = run_curl(again[-1])
        assert (status, replayed) == (201, False)
        process.send_signal(signal.SIGINT)
        lines_until(process, "^Stopped")
        assert process.wait() == 0

    shutil.rmtree(var / "keys")
    with running(var, port) as process:
        refused = lines_until(process, "^Cannot start")[-1]
        assert re.search(f"The keys in {var}/keys/.* are not the ones this database was written with: put back the ", refused)
        assert process.wait() == 1
    assert capsys.readouterr().out == "Stopped.\n"


@pytest.mark.timeout(180)
def test_events_go_over_a_local_kafka_where_it_is_asked_for(reachable_path: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    var = reachable_path / "var"
    with running(var, port, "local") as process:
        printed = lines_until(process, "^curl ")
        (said,) = [line for line in printed if line.startswith("Events go over ")]
        bus = json.loads((var / "up.json").read_text())["bus"]["BUS_URL"]
        assert said == f"Events go over Kafka at {bus.removeprefix('kafka://')}."

        pids = {p.name: p.identity.pid for p in Installation(var).running_processes()}
        for name in ("kafka", "reporting"):
            os.kill(pids[name], signal.SIGKILL)
        # The sale does not wait for them.
        status, _, replayed = run_curl(printed[-1])
        assert (status, replayed) == (201, False)
        back = {"kafka", "reporting"}
        while back:
            back -= {lines_until(process, " is back")[-1].split()[0]}
        # It serves before it reads.
        wait_until(lambda: command.main(["bus", "lag", "reporting", "--var", str(var)]) == 0, "reporting reads the topics", 60)

        process.send_signal(signal.SIGINT)
        lines_until(process, "^Stopped")
        assert process.wait() == 0

    with running(var, port) as process:
        printed = lines_until(process, "^curl ")
        assert printed[printed.index("Events go over PostgreSQL.") + 1].startswith("They went another way at the last start.")
        process.send_signal(signal.SIGINT)
        lines_until(process, "^Stopped")
        assert process.wait() == 0
    assert "member.sale.v1" in capsys.readouterr().out
