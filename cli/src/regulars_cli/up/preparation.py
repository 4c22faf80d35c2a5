"""What must be there before the services serve: keys, databases, their tables, the bus's topics, and the demo chain."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from regulars_cli.up import CannotStart
from regulars_cli.up.installation import Installation
from regulars_cli.up.processes import how_it_ended, tied_to_this_process
from regulars_cli.up.topology import REPOSITORY, TOPICS, Topology

PROGRAMMES = REPOSITORY / "programmes"
STEP_SECONDS = 600
EMBEDDED = "embedded"


def prepare_databases(topology: Topology, installation: Installation, *, embedded: bool) -> dict[str, Any]:
    """Keys, databases, tables, topics, the demo chain, its programmes, made where it is missing; `seed-demo`'s answer with API keys."""
    environment = topology.environment()
    steps = _Steps(installation.logs, environment)
    databases = (("regulars_cli.up.databases", *topology.databases), {"DATABASE_URL": topology.server_url})
    steps.run("Making databases and keys", [databases, (("kit.keys", str(installation.keys)), {})])
    migrations: list[tuple[tuple[str, ...], Mapping[str, str]]] = [
        ((name, "migrate"), {}) for name in ("member", "gateway", "reporting", "kit.bus")
    ]
    steps.run("Bringing the databases to this release", migrations)
    topics = ("kit.bus", "create-topics", str(TOPICS))
    # The stores of the demo chain belong to these programmes.
    programmes = ("member", "apply-programme", "--if-missing", *map(str, sorted(PROGRAMMES.glob("*.yaml"))))
    seed, *_ = steps.run("Making the demo chain and the topics", [(("gateway", "seed-demo"), {}), (programmes, {}), (topics, {})])
    answer: dict[str, Any] = json.loads(seed)
    answer["database"] = EMBEDDED if embedded else _without_password(topology.server_url)
    answer["new"] = bool(answer.get("till_key"))
    if not answer["new"]:
        known = installation.read_up().get("keys", {}).get(answer["database"])
        if known:
            answer |= known
        else:
            # Only their hashes are kept, so keys that nobody noted can but be replaced.
            (seed,) = steps.run("Making the demo chain", [(("gateway", "seed-demo", "--new-keys"), {})])
            answer |= json.loads(seed) | {"new": True}
    return answer


class _Steps:
    """Runs commands that end, with what they say on standard error in a log."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._log = logs / "setup.log"
        self._environment = environment

    def run(self, what: str, modules: Sequence[tuple[tuple[str, ...], Mapping[str, str]]]) -> list[str]:
        """Run Python modules side by side, each with settings of its own; what each printed.

        Raises:
            CannotStart: one of them failed; the sentence is the last that it said.
        """
        with ExitStack() as running:
            processes = [
                running.enter_context(
                    subprocess.Popen(
                        (sys.executable, "-m", *module),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        env={**os.environ, **self._environment, **more},
                        start_new_session=True,
                        preexec_fn=tied_to_this_process(),  # noqa: PLW1509 - the supervisor has one thread
                        text=True,
                    )
                )
                for module, more in modules
            ]
            try:
                said = [process.communicate(timeout=STEP_SECONDS) for process in processes]
            except BaseException:
                for process in processes:
                    process.kill()
                raise
        with self._log.open("a") as log:
            log.writelines(err for _, err in said)
        for process, (_, err) in zip(processes, said, strict=True):
            if process.returncode:
                sentence = _last_words(err) or how_it_ended(process.returncode)
                raise CannotStart(f"{what} failed: {sentence.rstrip('.')} (see {self._log}).")
        return [out for out, _ in said]


def _last_words(said: str) -> str:
    """The sentence that a command ended with: its last line, or the exception's when a library adds notes below it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    raised = [line for line in said.splitlines() if re.match(r"[A-Za-z_][\w.]*(Error|Exception): ", line)]
    return (raised or lines or [""])[-1]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
