"""The database is backed up by the chart, spoilt, and made anew as of the moment before, as docs/backup.md says under "In a cluster"."""

import asyncio
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import yaml

from kit.clock import SystemClock
from regulars_cli.backup.sealing import new_identity
from tests.cluster.kubernetes import RELEASE, Cluster, until
from tests.cluster.release import Release, require, require_none_failed
from tests.integration.api import Json

POD = Path(__file__).parents[2] / "deploy" / "backup" / "restore-pod.yaml"
CLAIM, PLACE = "regulars-backups", "/backups/regulars"
IDENTITY = "regulars-restore-identity"
OURS = f"app.kubernetes.io/instance={RELEASE}"
# What has an HPA has no number of pods in its Deployment: nobody but the restore starts it again.
AUTOSCALED = "services.member.parts.serve.autoscaling.enabled=true"
EVERY_SECONDS = 2
RESTORE_POD = "regulars-restore"


class Recovery:
    """Backups in the cluster, on a volume, encrypted."""

    def __init__(self, cluster: Cluster, release: Release, tag: str) -> None:
        self._cluster = cluster
        self._release = release
        self._tag = tag

    async def restore(self) -> str:
        """The chart backs PostgreSQL up; it is spoilt, and restored to the moment before; what was lost is found, and reports follow."""
        with tempfile.TemporaryDirectory() as folder:
            identity = Path(folder) / "key.txt"
            settings = await self._back_up(new_identity(identity))
            async with self._release.selling(8) as kept:
                await kept.more(300)
            require_none_failed(kept)
            await self._release.agree()
            at = SystemClock().now()
            # What no one should have sold: it is lost, and the reports know of it.
            before = dict(self._release.sold)
            async with self._release.selling(8) as mistaken:
                await mistaken.more(200)
            await self._release.agree()
            rpo = await self._rpo()
            now = asyncio.get_running_loop().time
            begun = now()
            said = await self._make_anew(identity, at.isoformat())
            await self._release.upgrade(self._tag, *settings)
            self._release.sold = before
            async with self._release.selling(1) as first:
                await first.more(1)
            rto = now() - begun
        lines = [
            f"{len(kept.net_minor)} sales kept, {len(mistaken.net_minor)} of later gone; RPO {rpo:.1f} s, WAL every {EVERY_SECONDS} s",
            f"first sale again {rto:.0f} s after everything was stopped; {said}",
        ]
        lines.append(await self._set_right())
        return "\n".join(lines)

    async def _back_up(self, recipient: str) -> list[str]:
        """Turns the chart's backups on; returns its settings once a base backup is whole and WAL is fetched."""
        claim: Json = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
        }
        await self._cluster.kubectl("apply", "-f", "-", stdin=json.dumps(claim))
        settings = [
            "backup.enabled=true",
            f"backup.to={PLACE}",
            f"backup.volumeClaim={CLAIM}",
            f"backup.everySeconds={EVERY_SECONDS}",
            f"backup.recipients[0]={recipient}",
            AUTOSCALED,
        ]
        await self._release.upgrade(self._tag, *settings)
        await self._run_job("base")
        await until(self._is_covered, "WAL is fetched", 60)
        return settings

    async def _run_job(self, what: str) -> str:
        """Runs a CronJob of the backups now; returns what it said."""
        job = f"{RELEASE}-backup-{what}-now"
        await self._cluster.kubectl("delete", "job", job, "--ignore-not-found")
        await self._cluster.kubectl("create", "job", job, f"--from=cronjob/{RELEASE}-backup-{what}")
        await self._cluster.kubectl("wait", "--for=condition=Complete", f"job/{job}", "--timeout=120s")
        return (await self._cluster.kubectl("logs", f"job/{job}")).out.strip()

    async def _is_covered(self) -> bool:
        return await self._rpo() < 5 * EVERY_SECONDS

    async def _rpo(self) -> float:
        """Seconds of work that would be lost now, as `backup wal` exports it."""
        pods = await self._cluster.pods("backup-wal", ready=True)
        if not pods:
            return float("inf")
        exported = await self._cluster.metrics(pods[0])
        found = re.search(r'(?m)^regulars_backup_last_rpo_seconds\{kind="postgres"\} (\S+)$', exported)
        return float(found[1]) if found else float("inf")

    async def _make_anew(self, identity: Path, at: str) -> str:
        """Stops everything and makes the server's folder anew; returns what the restore said it took."""
        await self._cluster.kubectl("scale", "deploy", "-l", OURS, "--replicas=0")
        await until(self._cluster.is_settled, "everything is stopped", 120)
        await self._cluster.kubectl("scale", "statefulset", f"{RELEASE}-postgresql", "--replicas=0")
        await until(self._cluster.is_settled, "the server is stopped", 120)
        await self._cluster.kubectl("create", "secret", "generic", IDENTITY, f"--from-file=key.txt={identity}")
        await self._cluster.kubectl("apply", "-f", "-", stdin=json.dumps(self._pod(at)))

        async def has_ended() -> bool:
            found = [pod for pod in await self._cluster.items("pods") if pod["metadata"]["name"] == RESTORE_POD]
            return found[0]["status"].get("phase") in ("Succeeded", "Failed")

        await until(has_ended, "the restore ends", 180)
        said = (await self._cluster.kubectl("logs", RESTORE_POD)).out
        require(f"/data/18/docker is as of {at[:10]}" in said, f"the restore said: {said}")
        await self._cluster.kubectl("delete", f"pod/{RESTORE_POD}", f"secret/{IDENTITY}")
        await self._cluster.kubectl("scale", "statefulset", f"{RELEASE}-postgresql", "--replicas=1")
        await self._cluster.kubectl("scale", "deploy", "-l", OURS, "--replicas=1")
        return next(line for line in said.splitlines() if line.startswith("/data/18/docker"))

    def _pod(self, at: str) -> dict[str, Any]:
        """The example of deploy/backup, with this place, moment and image, as its reader would edit it."""
        pod: dict[str, Any] = yaml.safe_load(POD.read_text("utf-8"))
        container = pod["spec"]["containers"][0]
        container["image"] = f"regulars/cli:{self._tag}"
        container["args"] += ["--at", at]
        container["env"] = [{"name": "BACKUP_TO", "value": PLACE}]
        del container["envFrom"]
        container["volumeMounts"].append({"name": "backups", "mountPath": "/backups", "readOnly": True})
        pod["spec"]["volumes"].append({"name": "backups", "persistentVolumeClaim": {"claimName": CLAIM}})
        return pod

    async def _set_right(self) -> str:
        """What docs/backup.md says to do after a restore, in its order."""

        async def has_no_lag() -> bool:
            said = await self._release.operator("bus", "lag", "reporting", "--json", check=False)
            return said.code == 0 and all(group["behind"] == 0 for group in json.loads(said.out))

        await until(has_no_lag, "the bus has no lag", 60)
        found = await self._release.command("reconcile", "--reports")
        require(found.code == 1, f"the reports should know of what was lost: {found.out}{found.err}")
        rebuilt = await self._release.command("reporting", "rebuild", "--from-ledger")
        require(rebuilt.code == 0, f"the rebuild: {rebuilt.out}{rebuilt.err}")
        await self._release.agree()
        await self._run_job("base")
        verified = next(line for line in (await self._run_job("verify")).splitlines() if " are good, " in line)
        return f"reconcile named what was lost, and nothing after the rebuild from the ledger; `backup verify`: {verified}"
