"""What is done to a release, and what must hold: each step says its figures, or raises `StepFailed`."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import msgspec
import yaml

from kit.clock import SystemClock
from kit.ids import uuid7
from tests.cluster.kubernetes import CHART, RELEASE, Cluster, CommandFailed, NotInTime, run, until
from tests.cluster.sellers import Sold, Tills
from tests.integration.api import Json

TRIAL = CHART / "values-trial.yaml"
MEMBERS = 40
READY_SECONDS = 180
MEMORY_MIB = 2048
REPORT_SECONDS = 60
PARTS = ("gateway-serve", "member-serve", "member-relay", "reporting-serve", "reporting-consume")
# What scales, with what its pods count of sales.
WORK = {
    "gateway-serve": r'regulars_http_requests_total\{[^}]*route="/v1/sales"[^}]*\}',
    "member-serve": r'regulars_rpc_server_calls_total\{[^}]*ExecuteCommands"[^}]*\}',
}
PROBE = "regulars-probe"
# What the probe says of a port: whether a connection came about, in seconds that a policy needs to be felt.
METRICS = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9600/metrics', timeout=5).read().decode())"
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()"


class StepFailed(Exception):
    """What must hold did not."""


class Scenario:
    """One release from its installation to its end; every step goes on from where the one before left it."""

    def __init__(self, cluster: Cluster, tag: str, next_tag: str) -> None:
        self.cluster = cluster
        self._tag, self._next_tag = tag, next_tag
        self._tills: Tills | None = None
        self._url = self._till_key = self._admin_key = ""
        # Every sale that was acknowledged, by operation id.
        self._sold: dict[str, int] = {}

    async def judge_by_the_server(self) -> str:
        """Every profile, as the API server itself judges it."""
        known = (await self.cluster.kubectl("api-resources", "--no-headers")).out
        kinds = {(fields[-3], fields[-1]) for fields in map(str.split, known.splitlines())}
        judged, unknown = [], set[str]()
        for profile in sorted(CHART.glob("values-*.yaml")):
            rendered = await self.cluster.helm("template", RELEASE, str(CHART), "-f", str(profile), "--no-hooks")
            resources = [each for each in yaml.safe_load_all(rendered.out) if each]
            there = [each for each in resources if (each["apiVersion"], each["kind"]) in kinds]
            unknown |= {each["kind"] for each in resources if each not in there}
            text = yaml.safe_dump_all(there, allow_unicode=True)
            await self.cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
            judged.append(f"{len(there)} of {profile.stem.removeprefix('values-')}")
        left = f"; this cluster does not know {', '.join(sorted(unknown))}" if unknown else ""
        return f"the API server takes {', '.join(judged)}{left}"

    async def install(self) -> str:
        """The trial profile, from nothing until everything is ready."""
        begun = asyncio.get_running_loop().time()
        await self.cluster.helm("install", RELEASE, str(CHART), *self._values(self._tag), "--wait", "--timeout", f"{READY_SECONDS}s")
        await until(self.cluster.is_settled, "all pods are ready", READY_SECONDS)
        seconds = asyncio.get_running_loop().time() - begun
        await self._sign_in()
        if seconds > READY_SECONDS:
            raise StepFailed(f"ready after {seconds:.0f} s, more than {READY_SECONDS}")
        return f"ready after {seconds:.0f} s, with images present"

    async def weigh(self) -> str:
        """Memory of all pods, idle."""
        found: dict[str, float] = {}

        async def all_are_measured() -> bool:
            nonlocal found
            with suppress(CommandFailed):
                found = await self.cluster.memory_mib()
            pods = [pod["metadata"]["name"] for pod in await self.cluster.items("pods") if pod["status"]["phase"] == "Running"]
            return bool(pods) and set(pods) <= found.keys()

        await until(all_are_measured, "metrics-server measured every pod", 180, every=2)
        total = sum(found.values())
        each = ", ".join(f"{re.sub(rf'^{RELEASE}-', '', name)} {mib:.0f}" for name, mib in sorted(found.items()))
        if total > MEMORY_MIB:
            raise StepFailed(f"{total:.0f} MiB idle, more than {MEMORY_MIB}: {each}")
        return f"{total:.0f} MiB idle in all ({each})"

    async def sell(self) -> str:
        """Sales through the node port, and in the reports."""
        async with self._selling(8) as sold:
            await sold.more(600)
        self._require_none_failed(sold)
        seconds = await self._agree()
        return f"{sold.line()}; all in the reports after {seconds:.1f} s"

    async def upgrade(self) -> str:
        """A rolling release under load."""
        return await self._change("upgrade", RELEASE, str(CHART), *self._values(self._next_tag), expect=self._next_tag)

    async def roll_back(self) -> str:
        """Back to the release before, under load."""
        return await self._change("rollback", RELEASE, "1", expect=self._tag)

    async def delete_pods(self) -> str:
        """A pod of every part is deleted under load, one after the other, as when nodes are emptied."""
        seen = await self._lose_each("--wait=true")
        for sold in seen.values():
            self._require_none_failed(sold)
        return "\n".join(f"{part}: {sold.line()}" for part, sold in seen.items())

    async def kill_pods(self) -> str:
        """A pod of every part is deleted by force under load, with no time to finish; nothing is lost or doubled."""
        seen = await self._lose_each("--force", "--grace-period=0")
        return "\n".join(f"{part}: {sold.line()}" for part, sold in seen.items())

    async def _lose_each(self, *how: str) -> dict[str, Sold]:
        """What tills saw while a pod of each part was deleted in that way; in the end the reports have every sale."""
        seen = {}
        for part in PARTS:
            async with self._selling(8) as sold:
                await sold.more(60)
                victim = (await self.cluster.pods(part, ready=True))[0]
                await self.cluster.kubectl("delete", "pod", victim, *how)
                await until(self.cluster.is_settled, f"{part} is whole again", 120)
                await sold.more(60)
            seen[part] = sold
        await self._agree()
        return seen

    async def kill_backends(self) -> str:
        """Kafka, ClickHouse and PostgreSQL are deleted in turn under load: sales go on without the first two."""
        lines = []
        for name, sales_go_on in (("kafka", True), ("clickhouse", True), ("postgresql", False)):
            async with self._selling(8) as sold:
                await sold.more(60)
                victim = (await self.cluster.pods(name))[0]
                await self.cluster.kubectl("delete", "pod", victim, "--wait=true")
                await until(self.cluster.is_settled, f"{name} is back", 180)
                await sold.more(150)
            if sales_go_on:
                self._require_none_failed(sold)
            seconds = await self._agree()
            lines.append(f"{name}: {sold.line()}, reports agree after {seconds:.1f} s")
        return "\n".join(lines)

    async def scale(self) -> str:
        """Autoscaling adds pods under load, and the new ones get their share of it."""
        before = {part: len(await self.cluster.pods(part, ready=True)) for part in WORK}
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
        await self.cluster.helm("upgrade", RELEASE, str(CHART), *self._values(self._tag, *settings), "--wait", "--timeout", "180s")
        seconds: dict[str, str] = {}

        async def grew(part: str) -> bool:
            return len(await self.cluster.pods(part, ready=True)) > before[part]

        async def all_work(part: str) -> bool:
            return all([await self._sales_of(part, pod) > 0 for pod in await self.cluster.pods(part, ready=True)])

        async def watch(part: str) -> None:
            more = await until(lambda: grew(part), f"autoscaling adds a pod of {part}", 240, every=1)
            work = await until(lambda: all_work(part), f"every pod of {part} gets work", 120, every=1)
            seconds[part] = f"{part} from {before[part]} to {before[part] + 1} pods after {more:.0f} s, work for all {work:.0f} s later"

        async with self._selling(24) as sold:
            await asyncio.gather(*(watch(part) for part in WORK))
        self._require_none_failed(sold)
        await self._agree()
        return "\n".join([*(seconds[part] for part in WORK), sold.line()])

    async def ask_the_doctor(self) -> str:
        """`regulars doctor`, from the operators' pod: it reaches everything, and finds nothing that fails."""
        said = await self.cluster.kubectl("exec", f"deploy/{RELEASE}-operator", "--", "regulars", "doctor", check=False)
        # 1: warnings, such as that a trial has no backup.
        self._require(said.code in (0, 1), f"the doctor says: {said.out}{said.err}")
        return said.out.strip().splitlines()[-1]

    async def try_forbidden_edges(self) -> str:
        """Connections that no registry allows are refused, and those that one allows are not."""
        services = {
            each["metadata"]["name"]: [port["port"] for port in each["spec"]["ports"]] for each in await self.cluster.items("services")
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
            pod = (await self.cluster.pods(part, ready=True))[0]
            said = await self.cluster.kubectl("exec", pod, "--", "python", "-c", CONNECT, host, str(port), check=False)
            self._require(allowed == (said.code == 0), f"{part} → {host}:{port} is {'refused' if allowed else 'let through'}")
        await self._probe_as_a_stranger([(name, port) for name in (member, *backends.values()) for port in services[name][:1]])
        count = sum(allowed for *_, allowed in edges)
        return f"{count} edges of the registries are open, {len(edges) - count} others and all backends for a stranger's pod are shut"

    async def uninstall(self) -> str:
        """What is left afterwards is what must not be lost."""
        await self.cluster.helm("uninstall", RELEASE, "--wait", "--timeout", "180s")
        kinds = "pods,services,deployments,statefulsets,jobs,configmaps,secrets,networkpolicies,hpa,pdb,serviceaccounts,pvc,cronjobs"

        async def nothing_goes_any_more() -> bool:
            return not [pod for pod in await self.cluster.items("pods") if pod["metadata"].get("deletionTimestamp")]

        await until(nothing_goes_any_more, "the last pod is gone", 120)
        names = (await self.cluster.kubectl("get", kinds, "-o", "name")).out.split()
        own = [name for name in names if RELEASE in name and PROBE not in name]
        kept = [name for name in own if name.startswith(("persistentvolumeclaim/", "secret/"))]
        self._require(own == kept, f"left behind: {', '.join(sorted(set(own) - set(kept)))}")
        return f"nothing is left but what must not be lost: {', '.join(kept) or 'nothing'}"

    # What the steps share.

    def _values(self, tag: str, *settings: str) -> list[str]:
        given = [
            f"image.tag={tag}",
            # Two of whatever sales need, so that a release rolls.
            "services.gateway.parts.serve.replicas=2",
            "services.member.parts.serve.replicas=2",
            *settings,
        ]
        # Environment variables are text, also those that look like numbers.
        return ["-f", str(TRIAL), *(word for each in given for word in ("--set-string" if ".env." in each else "--set", each))]

    @asynccontextmanager
    async def _selling(self, tills: int) -> AsyncIterator[Sold]:
        if self._tills is None:
            raise StepFailed("nobody is signed in")
        async with self._tills.selling(tills) as sold:
            yield sold
        self._sold |= sold.net_minor

    async def _sign_in(self) -> None:
        """The keys of the demo chain, which the seeding Job shows once; and members to sell to."""
        seeding = await self.cluster.items("pods", "app.kubernetes.io/component=seed")
        pod = next(each for each in seeding if each["status"]["phase"] == "Succeeded")
        log = (await self.cluster.kubectl("logs", pod["metadata"]["name"], "--all-containers")).out
        seeded = json.loads(next(line for line in log.splitlines() if '"till_key"' in line))
        self._till_key, self._admin_key = seeded["till_key"], seeded["admin_key"]
        self._url = await self.cluster.url("gateway-serve")
        tills = Tills(self._url, self._till_key, seeded["store_id"], seeded["till_id"], [])
        members = []
        for number in range(MEMBERS):
            body: Json = {"operation_id": f"cluster-{uuid7()}", "name": f"测试{number}"}
            answer = await tills.ask("POST", "/v1/members", body)
            self._require(answer.status == 201, f"a sign-up was answered {answer.status}")
            members.append(str(msgspec.json.decode(answer.body)["id"]))
        self._tills = Tills(self._url, self._till_key, seeded["store_id"], seeded["till_id"], members)

    async def _change(self, *command: str, expect: str) -> str:
        async with self._selling(8) as sold:
            await sold.more(100)
            begun = asyncio.get_running_loop().time()
            await self.cluster.helm(*command, "--wait", "--timeout", "300s")
            await until(self.cluster.is_settled, "the release is whole", 120)
            seconds = asyncio.get_running_loop().time() - begun
            await sold.more(100)
        running = {
            container["image"].rpartition(":")[2]
            for pod in await self.cluster.items("pods")
            if not pod["metadata"].get("deletionTimestamp") and pod["metadata"]["labels"].get("app.kubernetes.io/component") in PARTS
            for container in pod["spec"]["containers"]
        }
        self._require(running == {expect}, f"{', '.join(sorted(running))} runs, not {expect} alone")
        self._require_none_failed(sold)
        await self._agree()
        return f"{seconds:.0f} s; {sold.line()}"

    def _require_none_failed(self, sold: Sold) -> None:
        self._require(not sold.failed and len(sold.seconds) > 0, f"not every request went well: {sold.line()}")

    def _require(self, holds: bool, said: str) -> None:  # noqa: FBT001
        if not holds:
            raise StepFailed(said)

    async def _agree(self) -> float:
        """Returns the seconds until the reports have every sale once, to the cent. The ledger is proven too, and the reports from it."""
        wanted = [len(self._sold), sum(self._sold.values())]
        today = SystemClock().now().date()
        question: Json = {
            "metrics": ["receipts", "net_sales_minor"],
            # Days are the stores', whose zone is another.
            "from": str(today - timedelta(days=2)),
            "to": str(today + timedelta(days=2)),
            "filters": [{"field": "currency", "op": "eq", "values": ["CNY"]}],
        }
        found: list[object] = []

        async def has_all() -> bool:
            nonlocal found
            with suppress(OSError, EOFError):
                answer = await self._as_administrator().ask("POST", "/v1/reports/query", question)
                if answer.status == 200:
                    rows = msgspec.json.decode(answer.body)["rows"]
                    found = rows[0] if rows else [0, 0]
            return found == wanted

        try:
            seconds = await until(has_all, "the reports have every sale", REPORT_SECONDS)
        except NotInTime:
            raise StepFailed(f"the reports show {found} receipts and cents, not {wanted}") from None
        for what in ([], ["--reports"]):
            said = await run(
                sys.executable, "-m", "regulars_cli.main", "reconcile", *what, "--url", self._url, "--key", self._admin_key, check=False
            )
            self._require(said.code == 0, f"reconcile {' '.join(what)}: {said.out}{said.err}")
        return seconds

    def _as_administrator(self) -> Tills:
        return Tills(self._url, self._admin_key, "", "", [])

    async def _sales_of(self, part: str, pod: str) -> int:
        """How many requests with sales a pod answered since it began."""
        said = await self.cluster.kubectl("exec", pod, "--", "python", "-c", METRICS)
        return int(sum(float(each) for each in re.findall(rf"(?m)^{WORK[part]} (\S+)$", said.out)))

    async def _probe_as_a_stranger(self, targets: Sequence[tuple[str, int]]) -> None:
        """A pod that is none of ours is let to nothing but the gateway."""
        pod = (await self.cluster.items("pods", "app.kubernetes.io/component=gateway-serve"))[0]
        image = pod["spec"]["containers"][0]["image"]
        await self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(_stranger(image)))
        try:
            await self.cluster.kubectl("wait", "--for=condition=Ready", f"pod/{PROBE}", "--timeout=60s")
            for host, port in targets:
                said = await self.cluster.kubectl("exec", PROBE, "--", "python", "-c", CONNECT, host, str(port), check=False)
                self._require(said.code != 0, f"a stranger is let to {host}:{port}")
            service = (await self.cluster.items("services", "app.kubernetes.io/component=gateway-serve"))[0]["metadata"]["name"]
            said = await self.cluster.kubectl("exec", PROBE, "--", "python", "-c", CONNECT, service, "8600", check=False)
            self._require(said.code == 0, f"a stranger is not let to the gateway: {said.err.strip()[-200:]}")
        finally:
            await self.cluster.kubectl("delete", "pod", PROBE, "--force", "--grace-period=0", check=False)


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
