"""The release under test: how it is installed and upgraded, who sells through it, and what must hold of it after every step."""

import json
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import msgspec

from kit.clock import SystemClock
from kit.ids import uuid7
from tests.cluster.kubernetes import CHART, RELEASE, Cluster, NotInTime, Said, run, until
from tests.cluster.sellers import Sold, Tills
from tests.integration.api import Json

TRIAL = CHART / "values-trial.yaml"
MEMBERS = 40
REPORT_SECONDS = 60
PARTS = ("gateway-serve", "member-serve", "member-relay", "reporting-serve", "reporting-consume")


class StepFailed(Exception):
    """What must hold did not."""


def require(holds: bool, said: str) -> None:  # noqa: FBT001
    """Raises StepFailed, with what was found, where it does not hold."""
    if not holds:
        raise StepFailed(said)


def require_none_failed(sold: Sold) -> None:
    """Every request went well, and there were some."""
    require(not sold.failed and len(sold.seconds) > 0, f"not every request went well: {sold.line()}")


class Release:
    """One release in one namespace, with the demo chain's tills."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._tills: Tills | None = None
        self._url = self._admin_key = ""
        # What every sale that was acknowledged came to, by operation id.
        self.sold: dict[str, int] = {}

    def values(self, tag: str, *settings: str, files: Sequence[Path] = ()) -> list[str]:
        """Helm's arguments for the trial profile with these images."""
        given = [
            f"image.tag={tag}",
            # Two of whatever sales need, so that a release rolls.
            "services.gateway.parts.serve.replicas=2",
            "services.member.parts.serve.replicas=2",
            *settings,
        ]
        # Environment variables are text, also those that look like numbers.
        words = [word for each in given for word in ("--set-string" if ".env." in each else "--set", each)]
        return [*(word for file in (TRIAL, *files) for word in ("-f", str(file))), *words]

    async def upgrade(self, tag: str, *settings: str, seconds: int = 180) -> None:
        """Upgrades the release, and returns once it is whole."""
        await self.cluster.helm("upgrade", RELEASE, str(CHART), *self.values(tag, *settings), "--wait", "--timeout", f"{seconds}s")

    async def sign_in(self) -> None:
        """Takes the keys of the demo chain, which the seeding Job shows once, and signs members up to sell to."""
        seeding = await self.cluster.items("pods", "app.kubernetes.io/component=seed")
        pod = next(each for each in seeding if each["status"]["phase"] == "Succeeded")
        log = (await self.cluster.kubectl("logs", pod["metadata"]["name"], "--all-containers")).out
        seeded = json.loads(next(line for line in log.splitlines() if '"till_key"' in line))
        self._admin_key = seeded["admin_key"]
        self._url = await self.cluster.url("gateway-serve")
        tills = Tills(self._url, seeded["till_key"], seeded["store_id"], seeded["till_id"], [])
        members = []
        for number in range(MEMBERS):
            body: Json = {"operation_id": f"cluster-{uuid7()}", "name": f"测试{number}"}
            answer = await tills.ask("POST", "/v1/members", body)
            require(answer.status == 201, f"a sign-up was answered {answer.status}")
            members.append(str(msgspec.json.decode(answer.body)["id"]))
        self._tills = Tills(self._url, seeded["till_key"], seeded["store_id"], seeded["till_id"], members)

    @asynccontextmanager
    async def selling(self, tills: int) -> AsyncIterator[Sold]:
        """So many tills sell during the block; what they sold is what the reports must have from then on."""
        if self._tills is None:
            raise StepFailed("nobody is signed in")
        async with self._tills.selling(tills) as sold:
            yield sold
        self.sold |= sold.net_minor

    async def operator(self, *command: str, check: bool = True) -> Said:
        """`regulars …` in the operators' pod."""
        return await self.cluster.kubectl("exec", f"deploy/{RELEASE}-operator", "--", "regulars", *command, check=check)

    async def migrations(self) -> Mapping[str, tuple[str, str]]:
        """Of each database the migration that it is at, and what `regulars doctor` thinks of that: ok, warning (newer) or failed."""
        said = await self.operator("doctor", "--json", check=False)
        return {
            finding["subject"]: (re.findall(r"\b\d{4}\w*", finding["sentence"])[0], finding["status"])
            for finding in json.loads(said.out)["findings"]
            if finding["check"] == "migrations"
        }

    async def running(self) -> set[str]:
        """The tags of the images that the parts run."""
        return {
            container["image"].rpartition(":")[2]
            for pod in await self.cluster.items("pods")
            if not pod["metadata"].get("deletionTimestamp") and pod["metadata"]["labels"].get("app.kubernetes.io/component") in PARTS
            for container in pod["spec"]["containers"]
        }

    async def agree(self) -> float:
        """Returns the seconds until the reports have every sale once, to the cent. The ledger is proven too, and the reports from it."""
        wanted = [len(self.sold), sum(self.sold.values())]
        found: list[object] = []

        async def has_all() -> bool:
            nonlocal found
            with suppress(OSError, EOFError):
                found = await self.reported()
            return found == wanted

        try:
            seconds = await until(has_all, "the reports have every sale", REPORT_SECONDS)
        except NotInTime:
            raise StepFailed(f"the reports show {found} receipts and cents, not {wanted}") from None
        for what in ([], ["--reports"]):
            said = await self.command("reconcile", *what)
            require(said.code == 0, f"reconcile {' '.join(what)}: {said.out}{said.err}")
        return seconds

    async def reported(self) -> list[object]:
        """Receipts and cents, as the reports have them; nothing where they do not answer."""
        today = SystemClock().now().date()
        question: Json = {
            "metrics": ["receipts", "net_sales_minor"],
            # Days are the stores', whose zone is another.
            "from": str(today - timedelta(days=2)),
            "to": str(today + timedelta(days=2)),
            "filters": [{"field": "currency", "op": "eq", "values": ["CNY"]}],
        }
        answer = await Tills(self._url, self._admin_key, "", "", []).ask("POST", "/v1/reports/query", question)
        if answer.status != 200:
            return []
        rows: list[list[object]] = msgspec.json.decode(answer.body)["rows"]
        return rows[0] if rows else [0, 0]

    async def command(self, *words: str) -> Said:
        """`regulars …`, from outside, as an administrator."""
        # The key comes by the environment: a command line is for everybody to see.
        return await run(
            sys.executable,
            "-m",
            "regulars_cli.main",
            *words,
            check=False,
            given={"REGULARS_URL": self._url, "REGULARS_KEY": self._admin_key},
        )
