"""A real Prometheus that watches a running system by our own rules, only more often."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from regulars_cli.up.kafka import free_ports
from tests.integration.system import wait_until
from tests.observability.programs import program
from tests.observability.queries import RULES

EVERY = "1s"
# Of `regulars up`: which part each service's one process is.
PARTS = {"gateway": "serve", "member": "all", "reporting": "all"}


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=20)

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def values(self, query: str) -> list[float]:
        """What a query gives now, of each series."""
        return [float(each["value"][1]) for each in self._ask("/api/v1/query", {"query": query})["result"]]

    def labels(self, query: str) -> list[Mapping[str, str]]:
        """The labels of each series that a query gives."""
        return [each["metric"] for each in self._ask("/api/v1/query", {"query": query})["result"]]

    def rules(self) -> list[Mapping[str, Any]]:
        """Every rule and how it stands."""
        return [rule for group in self._ask("/api/v1/rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[Mapping[str, Any]]:
        """What is scraped, and whether it answered."""
        found: list[Mapping[str, Any]] = self._ask("/api/v1/targets")["activeTargets"]
        return found

    def _ask(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        answer = self._client.get(path, params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]


@contextmanager
def watching(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Watches the services at these addresses from `folder`, by rules that are evaluated every second."""
    folder.mkdir()
    for path in RULES:
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group["interval"] = EVERY
        (folder / path.name).write_text(json.dumps(rules))
    scraped = [{"targets": [address], "labels": {"service": name, "part": PARTS[name]}} for name, address in targets.items()]
    settings = {
        "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
        "rule_files": [str(folder / path.name) for path in RULES],
        "scrape_configs": [{"job_name": "regulars", "static_configs": scraped}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings))
    (port,) = free_ports(1)
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen((program("prometheus"), *options, f"--web.listen-address=127.0.0.1:{port}"), stdout=log, stderr=log)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: prometheus.is_ready() or process.poll() is not None, "Prometheus is ready", seconds=30)
        assert process.poll() is None, (folder / "log").read_text()
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(20)
