"""What is done to a release, and what must hold: each step says its figures, or raises `StepFailed`."""

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from tests.cluster.kubernetes import CHART, RELEASE, Cluster, CommandFailed, NotInTime, until
from tests.cluster.release import PARTS, Release, StepFailed, require, require_none_failed
from tests.cluster.sellers import Sold
from tests.integration.api import Json

READY_SECONDS = 180
MEMORY_MIB = 2048
# What scales, with what its pods count of sales.
WORK = {
    "gateway-serve": r'regulars_http_requests_total\{[^}]*route="/v1/sales"[^}]*\}',
    "member-serve": r'regulars_rpc_server_calls_total\{[^}]*ExecuteCommands"[^}]*\}',
}
PROBE = "regulars-probe"
# What the probe says of a port: whether a connection came about, in seconds that a policy needs to be felt.
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()"


class Scenario:
    """One release from its installation to its end; every step goes on from where the one before left it.

    `next_values`: values that the next release brings, besides its images.
    """

    def __init__(self, cluster: Cluster, release: Release, tag: str, next_tag: str, next_values: Sequence[Path]) -> None:
        self._cluster = cluster
        self._release = release
        self._tag, self._next_tag, self._next_values = tag, next_tag, next_values

    async def judge_by_the_server(self) -> str:
        """Every profile, as the API server itself judges it."""
        known = (await self._cluster.kubectl("api-resources", "--no-headers")).out
        kinds = {(fields[-3], fields[-1]) for fields in map(str.split, known.splitlines())}
        judged, unknown = [], set[str]()
        for profile in sorted(CHART.glob("values-*.yaml")):
            rendered = await self._cluster.helm("template", RELEASE, str(CHART), "-f", str(profile), "--no-hooks")
            resources = [each for each in yaml.safe_load_all(rendered.out) if each]
            there = [each for each in resources if (each["apiVersion"], each["kind"]) in kinds]
            unknown |= {each["kind"] for each in resources if each not in there}
            text = yaml.safe_dump_all(there, allow_unicode=True)
            await self._cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
            judged.append(f"{len(there)} of {profile.stem.removeprefix('values-')}")
        left = f"; this cluster does not know {', '.join(sorted(unknown))}" if unknown else ""
        return f"the API server takes {', '.join(judged)}{left}"

    async def install(self) -> str:
        """The trial profile, from nothing until everything is ready."""
        begun = asyncio.get_running_loop().time()
        await self._cluster.helm(
            "install", RELEASE, str(CHART), *self._release.values(self._tag), "--wait", "--timeout", f"{READY_SECONDS}s"
        )
        await until(self._cluster.is_settled, "all pods are ready", READY_SECONDS)
        seconds = asyncio.get_running_loop().time() - begun
        await self._release.sign_in()
        if seconds > READY_SECONDS:
            raise StepFailed(f"ready after {seconds:.0f} s, more than {READY_SECONDS}")
        return f"ready after {seconds:.0f} s, with images present"

    async def weigh(self) -> str:
        """Memory of all pods, idle."""
        found: dict[str, float] = {}

        async def all_are_measured() -> bool:
            nonlocal found
            with suppress(CommandFailed):
                found = await self._cluster.memory_mib()
            pods = [pod["metadata"]["name"] for pod in await self._cluster.items("pods") if pod["status"]["phase"] == "Running"]
            return bool(pods) and set(pods) <= found.keys()

        await until(all_are_measured, "metrics-server measured every pod", 180, every=2)
        total = sum(found.values())
        each = ", ".join(f"{re.sub(rf'^{RELEASE}-', '', name)} {mib:.0f}" for name, mib in sorted(found.items()))
        if total > MEMORY_MIB:
            raise StepFailed(f"{total:.0f} MiB idle, more than {MEMORY_MIB}: {each}")
        return f"{total:.0f} MiB idle in all ({each})"

    async def sell(self) -> str:
        """Sales through the node port, and in the reports."""
        async with self._release.selling(8) as sold:
            await sold.more(600)
        require_none_failed(sold)
        seconds = await self._release.agree()
        return f"{sold.line()}; all in the reports after {seconds:.1f} s"

    async def upgrade(self) -> str:
        """A rolling release under load: databases are migrated, then every pod is changed."""
        before = await self._release.migrations()
        values = self._release.values(self._next_tag, files=self._next_values)
        lines = [await self._change("upgrade", RELEASE, str(CHART), *values, expect=self._next_tag)]
        after = await self._release.migrations()
        require(all(status == "ok" for _, status in after.values()), f"the doctor says of migrations: {after}")
        moved = [f"{name} {before[name][0]} → {found}" for name, (found, _) in after.items() if before[name][0] != found]
        lines.append(f"migrated meanwhile: {', '.join(moved) or 'nothing'}")
        if self._next_values:
            require(len(moved) == len(before), f"not every database was migrated: {', '.join(moved)}")
            came = [name for each in self._next_values for name in yaml.safe_load(each.read_text("utf-8"))["services"]]
            for service in came:
                require(bool(await self._cluster.pods(f"{service}-serve", ready=True)), f"the new service {service} is not ready")
            lines.append(f"came with it, with a database of its own: {', '.join(came)}")
        return "\n".join(lines)

    async def roll_back(self) -> str:
        """Back to the release before, under load: it runs on the databases of the next."""
        before = await self._release.migrations()
        line = await self._change("rollback", RELEASE, "1", expect=self._tag)
        after = await self._release.migrations()
        require(
            {name: found for name, (found, _) in before.items()} == {name: found for name, (found, _) in after.items()}, f"moved: {after}"
        )
        newer = sum(status == "warning" for _, status in after.values())
        return f"{line}\n{newer} of {len(after)} databases are newer than the release, which the doctor warns of"

    async def delete_pods(self) -> str:
        """A pod of every part is deleted under load, one after the other, as when nodes are emptied."""
        seen = await self._lose_each("--wait=true")
        for sold in seen.values():
            require_none_failed(sold)
        return "\n".join(f"{part}: {sold.line()}" for part, sold in seen.items())

    async def kill_pods(self) -> str:
        """A pod of every part is deleted by force under load, with no time to finish; nothing is lost or doubled."""
        seen = await self._lose_each("--force", "--grace-period=0")
        return "\n".join(f"{part}: {sold.line()}" for part, sold in seen.items())

    async def _lose_each(self, *how: str) -> dict[str, Sold]:
        """What tills saw while a pod of each part was deleted in that way; in the end the reports have every sale."""
        seen = {}
        for part in PARTS:
            async with self._release.selling(8) as sold:
                await sold.more(60)
                victim = (await self._cluster.pods(part, ready=True))[0]
                await self._cluster.kubectl("delete", "pod", victim, *how)
                await until(self._cluster.is_settled, f"{part} is whole again", 120)
                await sold.more(60)
            seen[part] = sold
        await self._release.agree()
        return seen

    async def kill_backends(self) -> str:
        """Kafka, ClickHouse and PostgreSQL are deleted in turn under load: sales go on without the first two."""
        lines = []
        for name, sales_go_on in (("kafka", True), ("clickhouse", True), ("postgresql", False)):
            async with self._release.selling(8) as sold:
                await sold.more(60)
                victim = (await self._cluster.pods(name))[0]
                await self._cluster.kubectl("delete", "pod", victim, "--wait=true")
                await until(self._cluster.is_settled, f"{name} is back", 180)
                await sold.more(150)
            if sales_go_on:
                require_none_failed(sold)
            seconds = await self._release.agree()
            lines.append(f"{name}: {sold.line()}, reports agree after {seconds:.1f} s")
        return "\n".join(lines)

    async def scale(self) -> str:
        """Autoscaling adds pods under load, and the new ones get their share of it."""
        before = {part: len(await self._cluster.pods(part, ready=True)) for part in WORK}
        settings = [
            f"services.{service}.parts.{part}.autoscaling.{name}={value}"
            for service, _, part in (each.partition("-") for each in WORK)
            for name, value in (
                ("enabled", "true"), ("minReplicas", before[f"{service}-{part}"]), ("maxReplicas", before[f"{service}-{part}"] + 1),
                ("cpuUtilization", 30),
            )
        ]  # fmt: skip
        # Callers keep their connections; new pods get work as these end.
        settings += ["settings.rpcMaxConnectionAgeSeconds=10", "services.gateway.parts.serve.env.GATEWAY_CONNECTION_SECONDS=10"]
        await self._release.upgrade(self._tag, *settings)
        seconds: dict[str, str] = {}

        async def grew(part: str) -> bool:
            return len(await self._cluster.pods(part, ready=True)) > before[part]

        async def all_work(part: str) -> bool:
            return all([await self._sales_of(part, pod) > 0 for pod in await self._cluster.pods(part, ready=True)])

        async def watch(part: str) -> None:
            more = await until(lambda: grew(part), f"autoscaling adds a pod of {part}", 240, every=1)
            work = await until(lambda: all_work(part), f"every pod of {part} gets work", 120, every=1)
            seconds[part] = f"{part} from {before[part]} to {before[part] + 1} pods after {more:.0f} s, work for all {work:.0f} s later"

        async with self._release.selling(24) as sold:
            await asyncio.gather(*(watch(part) for part in WORK))
        require_none_failed(sold)
        await self._release.agree()
        return "\n".join([*(seconds[part] for part in WORK), sold.line()])

    async def ask_the_doctor(self) -> str:
        """`regulars doctor`, from the operators' pod: it reaches everything, and finds nothing that fails."""
        said = await self._release.operator("doctor", check=False)
        # 1: warnings, such as that a trial has no backup.
        require(said.code in (0, 1), f"the doctor says: {said.out}{said.err}")
        return said.out.strip().splitlines()[-1]

    async def try_forbidden_edges(self) -> str:
        """Connections that no registry allows are refused, and those that one allows are not."""
        services = {
            each["metadata"]["name"]: [port["port"] for port in each["spec"]["ports"]] for each in await self._cluster.items("services")
        }
        backends = {kind: next(name for name in services if kind in name) for kind in ("postgresql", "kafka", "clickhouse")}
        member = next(name for name in services if "member-serve" in name)
        edges: list[tuple[str, str, int, bool]] = [
            ("gateway-serve", member, 8601, True),
            ("gateway-serve", backends["postgresql"], 5432, True),
            ("gateway-serve", backends["kafka"], 9092, False),
            ("gateway-serve", backends["clickhouse"], 8123, False),
            ("member-relay", backends["kafka"], 9092, True),
            ("member-relay", backends["clickhouse"], 8123, False),
            ("member-serve", backends["kafka"], 9092, False),
            ("reporting-serve", member, 8601, True),
            ("reporting-consume", backends["clickhouse"], 8123, True),
            ("reporting-consume", backends["postgresql"], 5432, False),
            ("reporting-consume", member, 8601, False),
        ]
        for part, host, port, allowed in edges:
            pod = (await self._cluster.pods(part, ready=True))[0]
            said = await self._cluster.kubectl("exec", pod, "--", "python", "-c", CONNECT, host, str(port), check=False)
            require(allowed == (said.code == 0), f"{part} → {host}:{port} is {'refused' if allowed else 'let through'}")
        await self._probe_as_a_stranger([(name, port) for name in (member, *backends.values()) for port in services[name][:1]])
        count = sum(allowed for *_, allowed in edges)
        return f"{count} edges of the registries are open, {len(edges) - count} others and all backends for a stranger's pod are shut"

    async def uninstall(self) -> str:
        """What is left afterwards is what must not be lost."""
        await self._cluster.helm("uninstall", RELEASE, "--wait", "--timeout", "180s")
        kinds = "pods,services,deployments,statefulsets,jobs,configmaps,secrets,networkpolicies,hpa,pdb,serviceaccounts,pvc,cronjobs"

        async def left() -> tuple[list[str], list[str]]:
            """What must not be lost, and anything else."""
            names = (await self._cluster.kubectl("get", kinds, "-o", "name")).out.split()
            own = [name for name in names if RELEASE in name and PROBE not in name]
            kept = [name for name in own if name.startswith(("persistentvolumeclaim/", "secret/"))]
            return kept, sorted(set(own) - set(kept))

        async def nothing_else_is_left() -> bool:
            return not (await left())[1]

        # What something else owned is collected a while after its owner.
        with suppress(NotInTime):
            await until(nothing_else_is_left, "what is left", 120)
        kept, others = await left()
        require(not others, f"left behind: {', '.join(others)}")
        return f"nothing is left but what must not be lost: {', '.join(kept) or 'nothing'}"

    async def _change(self, *command: str, expect: str) -> str:
        async with self._release.selling(8) as sold:
            await sold.more(100)
            begun = asyncio.get_running_loop().time()
            await self._cluster.helm(*command, "--wait", "--timeout", "300s")
            await until(self._cluster.is_settled, "the release is whole", 120)
            seconds = asyncio.get_running_loop().time() - begun
            await sold.more(100)
        running = await self._release.running()
        require(running == {expect}, f"{', '.join(sorted(running))} runs, not {expect} alone")
        require_none_failed(sold)
        await self._release.agree()
        return f"{seconds:.0f} s; {sold.line()}"

    async def _sales_of(self, part: str, pod: str) -> int:
        """How many requests with sales a pod answered since it began."""
        exported = await self._cluster.metrics(pod)
        return int(sum(float(each) for each in re.findall(rf"(?m)^{WORK[part]} (\S+)$", exported)))

    async def _probe_as_a_stranger(self, targets: Sequence[tuple[str, int]]) -> None:
        """A pod that is none of ours is let to nothing but the gateway."""
        pod = (await self._cluster.items("pods", "app.kubernetes.io/component=gateway-serve"))[0]
        image = pod["spec"]["containers"][0]["image"]
        await self._cluster.kubectl("apply", "-f", "-", stdin=json.dumps(_stranger(image)))
        try:
            await self._cluster.kubectl("wait", "--for=condition=Ready", f"pod/{PROBE}", "--timeout=60s")
            for host, port in targets:
                said = await self._cluster.kubectl("exec", PROBE, "--", "python", "-c", CONNECT, host, str(port), check=False)
                require(said.code != 0, f"a stranger is let to {host}:{port}")
            service = (await self._cluster.items("services", "app.kubernetes.io/component=gateway-serve"))[0]["metadata"]["name"]
            said = await self._cluster.kubectl("exec", PROBE, "--", "python", "-c", CONNECT, service, "8600", check=False)
            require(said.code == 0, f"a stranger is not let to the gateway: {said.err.strip()[-200:]}")
        finally:
            await self._cluster.kubectl("delete", "pod", PROBE, "--force", "--grace-period=0", check=False)


def _stranger(image: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": PROBE},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "command": ["python", "-c", "import signal; signal.pause()"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "resources": {"limits": {"memory": "64Mi", "cpu": "200m"}},
                }
            ],
        },
    }
