"""What stands in the way of `regulars up` is one clear sentence, and `regulars down` stops only its own."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from regulars_cli import main as command
from regulars_cli.up import start
from regulars_cli.up.installation import Installation
from regulars_cli.up.kafka import free_ports
from regulars_cli.up.processes import Identity
from regulars_cli.up.topology import Topology


@pytest.fixture
def var(reachable_path: Path) -> Path:
    return reachable_path / "var"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a start that is refused says: one sentence."""
    assert command.main(["up", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_port_in_use_is_refused(var: Path, taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--var", str(var), "--port", str(taken_port))
    assert said == f"Cannot start: Port {taken_port} of 127.0.0.1 is in use; choose another with `make up PORT=…`.\n"
    assert not (var / "postgres").exists()


def test_an_operators_port_in_use_is_refused(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gateway, member, *_ = free_ports(2)
    with socket.create_server(("127.0.0.1", member)):
        said = refusal(capsys, "--var", str(var), "--port", str(gateway), "--ops", str(member - 1))
    assert said.endswith(" of 127.0.0.1 is in use; choose another with `regulars up --ops PORT`.\n")
    assert not (var / "postgres").exists()


def test_each_service_has_an_operators_port_of_its_own_if_asked_for(tmp_path: Path) -> None:
    def listening(ops_port: int | None) -> dict[str, str]:
        folders = (tmp_path, tmp_path, tmp_path, tmp_path)
        topology = Topology("postgresql:///", *folders, host="127.0.0.1", port=8600, ops_port=ops_port)
        return {spec.name: spec.environment["OPS_LISTEN"] for spec in topology.services()}

    assert listening(9600) == {"gateway": "127.0.0.1:9600", "member": "127.0.0.1:9601", "reporting": "127.0.0.1:9602"}
    assert listening(None) == {"gateway": "", "member": "", "reporting": ""}


def test_a_var_of_a_newer_release_is_left_alone(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    var.mkdir()
    (var / "version").write_text("2\n")
    said = refusal(capsys, "--var", str(var))
    assert "was written by a newer release (layout 2, this one knows 1)" in said
    assert {path.name for path in var.iterdir()} == {"version", "lock"}


def test_a_second_instance_is_told_where_the_first_one_is(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    installation = Installation(var)
    with installation.locked():
        installation.note_processes([])
        installation.write_up({"url": "http://127.0.0.1:1234", "pid": os.getpid()})
        said = refusal(capsys, "--var", str(var))
    assert f"Regulars already runs from {var} at http://127.0.0.1:1234 (process {os.getpid()})" in said


def test_a_full_disk_is_refused_before_anything_is_written(
    var: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=299 * 1024**2))
    said = refusal(capsys, "--var", str(var))
    assert said == f"Cannot start: The disk that holds {var} has 299 MB left and 300 MB are needed; make room first.\n"
    assert not (var / "keys").exists()


def test_a_server_that_cannot_be_reached_is_named(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    said = refusal(
        capsys, "--var", str(var), "--port", str(port), "--database-url", f"postgresql://u:secret@127.0.0.1:{port}/x?sslmode=disable"
    )
    assert str(port) in said
    assert "secret" not in said + (var / "log" / "setup.log").read_text()


def test_down_without_anything_running_is_no_error(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["down", "--var", str(var)]) == 0
    assert capsys.readouterr().out == "Nothing is running.\n"


def test_down_never_touches_a_process_that_was_given_the_number_later(var: Path, capsys: pytest.CaptureFixture[str]) -> None:
    var.mkdir()
    with subprocess.Popen(["sleep", "1000"]) as foreign:
        noted = {"name": "supervisor", "pid": foreign.pid, "started": "another time", "stop_signal": "SIGTERM"}
        (var / "processes.json").write_text(json.dumps({"processes": [noted]}))
        assert command.main(["down", "--var", str(var)]) == 0
        assert foreign.poll() is None
        assert Identity.of(foreign.pid) is not None
        foreign.kill()
    assert capsys.readouterr().out == "Nothing is running.\n"


def test_a_disk_that_fills_up_is_announced_once(var: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    var.mkdir()
    chores = start._Chores(Installation(var))
    for free_mb in (1000, 199, 150, 1000, 150):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free_mb: SimpleNamespace(free=free * 1024**2))
        chores()
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"The disk that holds {var} has {free_mb} MB left" for free_mb in (199, 150)
    ]


def test_secrets_are_readable_by_their_owner_only(var: Path) -> None:
    installation = Installation(var)
    with installation.locked():
        installation.write_up({"till_key": "k"})
        assert installation.up_file.stat().st_mode & 0o777 == 0o600
        assert installation.keys.stat().st_mode & 0o777 == 0o700
        assert installation.logs.stat().st_mode & 0o777 == 0o700


def test_the_printed_command_is_one_line_for_a_shell(tmp_path: Path) -> None:
    line = start.curl_line("http://h:1", "the-key", "s", "t")
    assert "\n" not in line
    fake = tmp_path / "curl"
    fake.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done\n')
    fake.chmod(0o755)
    words = subprocess.run(["sh", "-c", line], env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, capture_output=True, text=True, check=True)
    arguments = words.stdout.splitlines()
    assert "Authorization: Bearer the-key" in arguments
    assert json.loads(arguments[-1])["lines"][0]["amount_minor"] == 19990
