"""docker-compose.yml, running under a name and a port of its own."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from testcontainers.compose import DockerCompose

from kit.ids import uuid7
from regulars_cli.up.kafka import free_ports
from tests.integration.api import Api
from tests.integration.system import wait_until

UP_SECONDS = 300
# A line of `docker compose logs`: the service before, what it said behind.
_PREFIX = re.compile(r"^[\w-]+\s+\| ", re.MULTILINE)


class Stack:
    """One installation."""

    def __init__(self, checkout: Path, tag: str) -> None:
        (self.port,) = free_ports(1)
        self.project = f"regulars-test-{uuid7()[-12:]}"
        # The command reads them, also when testcontainers runs it.
        os.environ |= {"COMPOSE_PROJECT_NAME": self.project, "PORT": str(self.port), "TAG": tag}
        # `up --wait` takes a job that is done for a service that failed.
        self._compose = DockerCompose(checkout, compose_file_name="docker-compose.yml", wait=False)
        self.folder = checkout
        self._clients: list[Api] = []
        self.up_seconds: list[float] = []

    @property
    def url(self) -> str:
        """Where this machine finds the gateway."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Starts what does not run, and returns when it has said how to sign in and everything is well."""
        begun = time.monotonic()
        self._compose.start()
        wait_until(lambda: self._state("welcome")["Status"] == "exited", "the welcome", UP_SECONDS)
        self.up_seconds.append(round(time.monotonic() - begun, 1))
        assert self._state("welcome")["ExitCode"] == 0, self.said("welcome")
        wait_until(self._is_well, "all services are healthy", UP_SECONDS)

    def _state(self, service: str) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.containers()[service]["State"]
        return state

    def _is_well(self) -> bool:
        states = [each["State"] for each in self.containers().values() if each["State"]["Running"]]
        return all(state["Health"]["Status"] == "healthy" for state in states)

    def down(self) -> None:
        """Removes the containers; the volumes stay."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.compose("down")

    def remove(self) -> None:
        """Removes the containers and the volumes."""
        self.down()
        self._compose.stop()

    def compose(self, *arguments: str, codes: Iterable[int] = (0,)) -> str:
        """What `docker compose …` prints, which must end with one of these codes."""
        command = [*self._compose.docker_compose_command(), *arguments]
        done = subprocess.run(command, cwd=self.folder, check=False, capture_output=True, text=True, timeout=UP_SECONDS)
        assert done.returncode in codes, f"docker compose {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def said(self, service: str) -> str:
        """What a service wrote since its container was made."""
        return _PREFIX.sub("", self._compose.get_logs(service)[0])

    def welcome(self) -> str:
        """What the last start said of how to sign in."""
        said = self.said("welcome")
        return said[said.rindex("Regulars is ready") :]

    def key(self, role: str) -> str:
        """The key of the `till` or the `admin`, as an operator has it printed."""
        return self.compose("run", "--rm", "--no-deps", "-T", "welcome", "key", role).strip()

    def api(self, role: str) -> Api:
        """A client with that key, closed when the stack goes down."""
        client = Api(self.url, self.key(role))
        self._clients.append(client)
        return client

    def notes(self) -> dict[str, Any]:
        """Address, keys, and the ids of a store and a till, as the operator's commands read them."""
        script = "import pathlib; print(pathlib.Path('/app/var/up.json').read_text())"
        notes: dict[str, Any] = json.loads(
            self.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "python", "welcome", "-c", script)
        )
        return notes

    def gateway_command(self) -> list[str]:
        """What stands for `python -m gateway` in this stack."""
        return ["docker", "exec", f"{self.project}-gateway-serve-1", "python", "-m", "gateway"]

    def containers(self) -> dict[str, Mapping[str, Any]]:
        """Every container, running or done, by service, as the engine describes it."""
        ids = self.compose("ps", "--all", "--quiet").split()
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in _inspect(ids)}

    def memory_mib(self) -> dict[str, int]:
        """What each running container holds."""
        names = [each["Name"].lstrip("/") for each in self.containers().values() if each["State"]["Running"]]
        command = ("docker", "stats", "--no-stream", "--format", "{{.Name}}\t{{.MemUsage}}", *names)
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return {name.removeprefix(f"{self.project}-").removesuffix("-1"): _mib(used) for name, used in (line.split("\t") for line in lines)}

    def tell(self) -> None:
        """The end of what everything said, for a failure."""
        for line in (self.compose("ps", "--all"), self.compose("logs", "--tail", "20")):
            print(line, file=sys.stderr)  # noqa: T201


def _inspect(ids: Iterable[str]) -> list[Mapping[str, Any]]:
    done = subprocess.run(("docker", "inspect", *ids), check=True, capture_output=True)
    described: list[Mapping[str, Any]] = json.loads(done.stdout)
    return described


def _mib(used: str) -> int:
    number, unit = re.findall(r"([\d.]+)([KMG]iB)", used)[0]
    return round(float(number) * {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}[unit])
