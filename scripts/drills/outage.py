"""Something goes away while tills sell, and comes back: what users see, how far reports fall behind, and that nothing is lost.

    outage.py pods        each process (in a cluster: a pod of each part) is killed in turn
    outage.py kafka       the bus is away for --seconds
    outage.py postgres    PostgreSQL is restarted
    outage.py clickhouse  ClickHouse (where it is embedded: reporting) is away for --seconds

    --against up          a system that `regulars up` runs; --var names its folder
    --against compose     the containers of docker-compose.yml; --url, --key
    --against cluster     a release of the chart, by kubectl's configuration; --url, --key, --namespace, --release

It ends with proof: every acknowledged sale is recorded once, wallets and reports reconcile. Exit code 1 if not.
"""

import argparse
import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tills import DrillFailed, Shop  # type: ignore[import-not-found]  # beside this script

from regulars_cli import access
from regulars_cli.up.installation import Installation

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("gateway-serve", "member-serve", "member-relay", "reporting-serve", "reporting-consume")
CATCH_UP_SECONDS = 300.0
WATCH_SECONDS = 0.5


class Up:
    """The processes of one machine, looked after by their supervisor."""

    parts: Sequence[str] = ("gateway", "member", "reporting")

    def __init__(self, parsed: argparse.Namespace) -> None:
        self._installation = Installation(parsed.var.absolute())

    def kill(self, part: str) -> None:
        os.kill(self._pid(part), signal.SIGKILL)

    def restart_postgres(self) -> None:
        os.kill(self._pid("postgres"), signal.SIGINT)

    def away(self, what: str) -> Callable[[], None]:
        """Takes it away by stopping it in its tracks; what is returned brings it back."""
        pid = self._pid({"kafka": "kafka", "clickhouse": "reporting"}[what])
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    def _pid(self, name: str) -> int:
        for process in self._installation.running_processes():
            if process.name == name:
                return process.identity.pid
        raise DrillFailed(f"No {name} runs in {self._installation.folder}" + (": start it with --kafka local." if name == "kafka" else "."))


class Compose:
    """The containers of docker-compose.yml."""

    parts: Sequence[str] = PARTS

    def __init__(self, parsed: argparse.Namespace) -> None:
        del parsed

    def kill(self, part: str) -> None:
        # A container that is killed by hand stays down: compose restarts what died by itself.
        self._run("kill", part)
        self._run("up", "-d", "--no-deps", part)

    def restart_postgres(self) -> None:
        self._run("restart", "postgres")

    def away(self, what: str) -> Callable[[], None]:
        self._run("stop", what)
        return lambda: self._run("start", what)

    def _run(self, *arguments: str) -> None:
        subprocess.run(["docker", "compose", *arguments], cwd=REPOSITORY, check=True, capture_output=True)


class Cluster:
    """A release of the chart, with its own PostgreSQL, Kafka and ClickHouse (the trial profile)."""

    parts: Sequence[str] = PARTS

    def __init__(self, parsed: argparse.Namespace) -> None:
        self._namespace, self._release = parsed.namespace, parsed.release

    def kill(self, part: str) -> None:
        chosen = f"app.kubernetes.io/component={part},app.kubernetes.io/instance={self._release}"
        name = self._said("get", "pods", "-l", chosen, "-o", "jsonpath={.items[0].metadata.name}")
        self._said("delete", "pod", name, "--grace-period=0", "--force")
        self._said("rollout", "status", f"deployment/{self._release}-{part}", "--timeout=180s")

    def restart_postgres(self) -> None:
        self._said("rollout", "restart", f"statefulset/{self._release}-postgresql")
        self._said("rollout", "status", f"statefulset/{self._release}-postgresql", "--timeout=180s")

    def away(self, what: str) -> Callable[[], None]:
        name = f"statefulset/{self._release}-{what}"
        self._said("scale", name, "--replicas=0")
        return lambda: void(self._said("scale", name, "--replicas=1"))

    def _said(self, *arguments: str) -> str:
        done = subprocess.run(["kubectl", "-n", self._namespace, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()


def void(_: object) -> None:
    """Nothing of what was returned is needed."""


SYSTEMS: dict[str, type[Up] | type[Compose] | type[Cluster]] = {"up": Up, "compose": Compose, "cluster": Cluster}


async def drill(parsed: argparse.Namespace) -> None:
    """Raises DrillFailed when anything is lost, doubled, or does not come back."""
    given = access.find_access(parsed)
    system, shop = SYSTEMS[parsed.against](parsed), Shop(given.url, given.admin_key, rate=parsed.rate)
    await shop.open()
    shop.start()
    await shop.has_sold(int(3 * parsed.rate))
    before = len(shop.seen.acknowledged())
    peaks: list[int | None] = []
    watching = asyncio.create_task(_watch(shop, peaks))
    began = time.monotonic()
    match parsed.what:
        case "pods":
            for part in system.parts:
                print(f"killing {part}")
                await asyncio.to_thread(system.kill, part)
                await shop.has_sold(int(3 * parsed.rate), 180)
        case "postgres":
            print("restarting PostgreSQL")
            await asyncio.to_thread(system.restart_postgres)
            await shop.has_sold(int(5 * parsed.rate), 180)
        case what:
            print(f"{what} is away for {parsed.seconds:.0f} s")
            bring_back = await asyncio.to_thread(system.away, what)
            try:
                await asyncio.sleep(parsed.seconds)
                print(f"while it was away: {len(shop.seen.acknowledged()) - before} sales were acknowledged")
            finally:
                await asyncio.to_thread(bring_back)
    over = time.monotonic()
    await shop.close()
    await _caught_up(shop)
    caught_up = time.monotonic()
    watching.cancel()
    for line in shop.seen.lines():
        print(line)
    known = [each for each in peaks if each is not None]
    unknown = f" (nobody could count them for about {peaks.count(None) * WATCH_SECONDS:.0f} s)" if None in peaks else ""
    print(f"events not in the reports: {max(known, default=0):,} at the most{unknown}; {caught_up - over:.1f} s after the end of it, none")
    await shop.check_once_each(shop.seen.acknowledged())
    print(f"every one of {len(shop.seen.acknowledged()):,} acknowledged sales is recorded once")
    for what in ([], ["--reports"]):
        command = [sys.executable, "-m", "regulars_cli.main", "reconcile", *what, "--url", given.url, "--key", given.admin_key]
        if (await asyncio.to_thread(subprocess.run, command, check=False)).returncode:
            raise DrillFailed("It does not reconcile.")
    print(f"{parsed.what}, {parsed.against}: passed, {time.monotonic() - began:.0f} s in all")


async def _watch(shop: Shop, peaks: list[int | None]) -> None:
    while True:
        began = time.monotonic()
        behind = await shop.behind()
        # Who waits for an answer that does not come stands for all that time.
        took = time.monotonic() - began
        peaks += [behind] * max(1, round(took / WATCH_SECONDS))
        await asyncio.sleep(max(0.0, WATCH_SECONDS - took))


async def _caught_up(shop: Shop) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while await shop.behind() != 0:
        if time.monotonic() > deadline:
            raise DrillFailed(f"The reports have not caught up within {CATCH_UP_SECONDS:.0f} s.")
        await asyncio.sleep(0.2)


def main() -> int:
    """Exit code 1 when the drill failed."""
    # Lines appear at once also when they go to a file.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pods", "kafka", "postgres", "clickhouse"))
    parser.add_argument("--against", choices=SYSTEMS, default="up")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long it is away (default %(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="sales a second (default %(default)s)")
    parser.add_argument("--namespace", default="regulars")
    parser.add_argument("--release", default="regulars")
    access.add_arguments(parser)
    try:
        asyncio.run(drill(parser.parse_args()))
    except (DrillFailed, access.AccessUnknown, TimeoutError) as reason:
        print(f"The drill failed: {reason or 'nothing was sold for too long.'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
