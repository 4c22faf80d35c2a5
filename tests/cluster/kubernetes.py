"""kubectl and helm, as this test uses them: against the cluster of KUBECONFIG, in one namespace."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.waiting import wait_at_most

Resource = Mapping[str, Any]

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "regulars"
RELEASE = "regulars"
# Run in a pod: what it exports.
_METRICS = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9600/metrics', timeout=5).read().decode())"


class CommandFailed(Exception):
    """A command ended with another code than 0; the text is what it said."""


class NotInTime(Exception):
    """What was waited for did not come about."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command that ended said, and how."""

    code: int
    out: str
    err: str


async def run(*command: str, stdin: str = "", check: bool = True, given: Mapping[str, str] | None = None) -> Said:
    """Runs a command to its end; `given`: environment that it has besides.

    Raises:
        CommandFailed: it failed, and `check` is on.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | (given or {}),
    )
    out, err = (each.decode() for each in await process.communicate(stdin.encode()))
    code = process.returncode or 0
    if check and code:
        raise CommandFailed(f"{' '.join(command[:6])} …: {err.strip() or out.strip()}")
    return Said(code, out, err)


def tool(name: str) -> str:
    """Where a tool is: beside this Python (helm), or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise CommandFailed(f"{name} is not on the path.")
    return found


async def until(met: Callable[[], Awaitable[object]], what: str, seconds: float, every: float = 0.5) -> float:
    """Returns once it is met, with the seconds it took.

    Raises:
        NotInTime: it was not.
    """
    now = asyncio.get_running_loop().time
    begun = now()
    while not await met():
        if now() - begun > seconds:
            raise NotInTime(f"{what}: not within {seconds:.0f} s")
        await wait_at_most(asyncio.Event(), every)
    return now() - begun


class Cluster:
    """One release in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._kubectl = tool("kubectl")
        self._helm = tool("helm")

    async def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> Said:
        """kubectl in the namespace."""
        return await run(self._kubectl, "-n", self.namespace, *arguments, stdin=stdin, check=check)

    async def helm(self, *arguments: str, check: bool = True) -> Said:
        """helm in the namespace."""
        return await run(self._helm, "-n", self.namespace, *arguments, check=check)

    async def items(self, kind: str, selector: str = "") -> list[Resource]:
        """Resources of a kind, by label."""
        said = await self.kubectl("get", kind, "-o", "json", *(("-l", selector) if selector else ()))
        found: list[Resource] = json.loads(said.out)["items"]
        return found

    async def pods(self, component: str, *, ready: bool = False) -> list[str]:
        """The pods of a part that are not on their way out; with `ready`, those that are ready."""
        found = await self.items("pods", f"app.kubernetes.io/component={component}")
        return [pod["metadata"]["name"] for pod in found if not pod["metadata"].get("deletionTimestamp") and (not ready or _is_ready(pod))]

    async def is_settled(self) -> bool:
        """Whether every Deployment and StatefulSet has all its pods, of its newest version, ready."""
        for kind in ("deployments", "statefulsets"):
            for each in await self.items(kind):
                status, wanted = each["status"], each["spec"].get("replicas", 1)
                if status.get("observedGeneration", 0) < each["metadata"]["generation"] or status.get("replicas", 0) != wanted:
                    return False
                if status.get("readyReplicas", 0) != wanted or status.get("updatedReplicas", 0) != wanted:
                    return False
        return True

    async def memory_mib(self) -> dict[str, float]:
        """What the pods use, by name (metrics-server)."""
        said = await self.kubectl("top", "pods", "--no-headers")
        return {fields[0]: _mib(fields[2]) for fields in (line.split() for line in said.out.splitlines())}

    async def metrics(self, pod: str) -> str:
        """What a pod of ours exports, as Prometheus reads it."""
        return (await self.kubectl("exec", pod, "--", "python", "-c", _METRICS)).out

    async def node_address(self) -> str:
        """An address at which node ports answer."""
        nodes: list[Resource] = json.loads((await self.kubectl("get", "nodes", "-o", "json")).out)["items"]
        return next(str(address["address"]) for node in nodes for address in node["status"]["addresses"] if address["type"] == "InternalIP")

    async def url(self, component: str) -> str:
        """Where a part's NodePort answers."""
        services = await self.items("services", f"app.kubernetes.io/component={component}")
        ports = [port["nodePort"] for each in services for port in each["spec"]["ports"] if port.get("nodePort")]
        return f"http://{await self.node_address()}:{ports[0]}"


def _is_ready(pod: Resource) -> bool:
    conditions: Sequence[Resource] = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _mib(text: str) -> float:
    for unit, factor in (("Ki", 1 / 1024), ("Mi", 1.0), ("Gi", 1024.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text) / 2**20
