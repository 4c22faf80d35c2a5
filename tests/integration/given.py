"""A system that runs already, wherever it is: the tests that only talk to the API can be pointed at it.

`TEST_SYSTEM` names a file like `up.json`: `url`, `till_key`, `admin_key`, `store_id`, `till_id`; and `gateway_command`, a list, what to
run in place of `python -m gateway` to issue keys there. Tests marked `own_system` take processes in hand, and are left out.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.integration.api import Api
from tests.integration.system import System

VARIABLE = "TEST_SYSTEM"


class GivenSystem(System):
    """What a `System` is to tests that neither stop, start nor kill it, nor look into its folders."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._clients: list[Api] = []

    @property
    def url(self) -> str:
        return str(self._given["url"])

    @property
    def store_id(self) -> str:
        return str(self._given["store_id"])

    @property
    def till_id(self) -> str:
        return str(self._given["till_id"])

    def key(self, role: str) -> str:
        return str(self._given[f"{role}_key"])

    def run_gateway_command(self, *arguments: str) -> Mapping[str, str]:
        command: Sequence[str] = self._given["gateway_command"]
        done = subprocess.run((*command, *arguments), stdout=subprocess.PIPE, check=True)
        printed: dict[str, str] = json.loads(done.stdout)
        return printed

    def logs(self) -> dict[str, str]:
        """None: they are where it runs."""
        return {}

    def close(self) -> None:
        """Ends the connections of every client; the system stays."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def start(self) -> NoReturn:
        raise AssertionError("A system that was given is not started by a test: mark the test `own_system`.")

    stop = start


def is_given() -> bool:
    """Whether the environment names a system."""
    return bool(os.environ.get(VARIABLE))


def given_system() -> GivenSystem:
    """The one that it names."""
    return GivenSystem(json.loads(Path(os.environ[VARIABLE]).read_bytes()))
