"""Installs the chart in a real cluster, sells through it, and breaks, upgrades, scales and removes it: `make test-cluster`.

    KUBECONFIG=… python -m tests.cluster [--namespace regulars-test] [--tag 0.1.0] [--next-tag 0.2.0] [--only STEP,…] [--write FILE]

Any cluster will do that has the images of both tags, a default StorageClass, metrics-server and a network plug-in that enforces
NetworkPolicy, and whose node ports can be reached from here. The next release is a made-up one, with migrations of every database and
a new service: `python -m tests.cluster.next_release 0.1.0 0.2.0` builds its images over those of this one. `--real` takes any two instead.
Exit code 1 when a step failed; the steps after it are not tried, and what is installed stays to be looked at.
"""

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from kit.clock import SystemClock
from tests.cluster.kubernetes import Cluster, CommandFailed, NotInTime
from tests.cluster.recovery import Recovery
from tests.cluster.release import Release, StepFailed
from tests.cluster.scenario import Scenario


def main() -> int:
    """Runs the steps and says what each found."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--namespace", default="regulars-test", help="made anew, and removed at the end (default %(default)s)")
    parser.add_argument("--tag", default="0.1.0", help="the images to install (default %(default)s)")
    parser.add_argument("--next-tag", default="0.2.0", help="the images to upgrade to (default %(default)s)")
    parser.add_argument("--real", action="store_true", help="the next release is a real one, and brings nothing but its images")
    parser.add_argument("--only", default="", metavar="STEP,…", help="these steps, on what is installed; `install` is always done")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the figures to a page")
    parsed = parser.parse_args()
    return asyncio.run(_run(parsed))


async def _run(parsed: argparse.Namespace) -> int:
    cluster = Cluster(parsed.namespace)
    release = Release(cluster)
    next_values = [] if parsed.real else [Path(__file__).parent / "next_release" / "values.yaml"]
    scenario = Scenario(cluster, release, parsed.tag, parsed.next_tag, next_values)
    recovery = Recovery(cluster, release, parsed.tag)
    steps: dict[str, Callable[[], Awaitable[str]]] = {
        "dry-run": scenario.judge_by_the_server,
        "install": scenario.install,
        "memory": scenario.weigh,
        "sell": scenario.sell,
        "doctor": scenario.ask_the_doctor,
        "network": scenario.try_forbidden_edges,
        "upgrade": scenario.upgrade,
        "rollback": scenario.roll_back,
        "delete": scenario.delete_pods,
        "kill": scenario.kill_pods,
        "scale": scenario.scale,
        "backends": scenario.kill_backends,
        "restore": recovery.restore,
        "uninstall": scenario.uninstall,
    }
    wanted = {"install", *parsed.only.split(",")} if parsed.only else set(steps)
    if unknown := wanted - steps.keys():
        print(f"There is no step {', '.join(sorted(unknown))}; the steps are {', '.join(steps)}.", file=sys.stderr)
        return 2
    found: list[tuple[str, str, str]] = []
    try:
        await cluster.kubectl("delete", "namespace", parsed.namespace, "--ignore-not-found", "--wait=true")
        await cluster.kubectl("create", "namespace", parsed.namespace)
        await cluster.kubectl("label", "namespace", parsed.namespace, "pod-security.kubernetes.io/enforce=restricted")
        for name, step in steps.items():
            if name not in wanted:
                continue
            said = await step()
            found.append((name, (step.__doc__ or "").strip(), said))
            print(f"{name}: {said.replace(chr(10), '; ')}", flush=True)
    except (StepFailed, NotInTime, CommandFailed, TimeoutError) as failed:
        print(f"{name}: FAILED: {failed}", file=sys.stderr)
        print(f"What is installed stays in the namespace {parsed.namespace}.", file=sys.stderr)
        return 1
    await cluster.kubectl("delete", "namespace", parsed.namespace, "--wait=true")
    if parsed.write:
        version = (await cluster.kubectl("version")).out.replace("\n", "; ").strip("; ")
        parsed.write.write_text(_page(found, version, is_real=parsed.real), encoding="utf-8")
    return 0


def _page(found: list[tuple[str, str, str]], version: str, *, is_real: bool) -> str:
    """The figures as a page: a step is what was done, and below it what was found."""
    lines = [
        "# The chart on a real cluster",
        "",
        f"Written by `make test-cluster` on {SystemClock().now().date()}, {platform.machine()}, {os.cpu_count()} cores. {version}.",
        "The trial profile, with two pods of gateway-serve and member-serve. *Failed* counts every sale that was not answered 201 at once,",
        "whatever came of it when the till asked again. After each step every sale is in the reports exactly once, to the cent, and",
        "`regulars reconcile` proves the ledger, and the reports from it.",
        "The two releases are real ones."
        if is_real
        else "The next release is made up: this one's code, with migrations of every database and a new service.",
    ]
    for name, what, said in found:
        lines += ["", f"## {name}", what.splitlines()[0], "", *(f"- {each}" for each in said.split("\n"))]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
