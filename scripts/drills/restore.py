"""The restore drill: a system that sells is backed up, lost at a random moment, made anew, and held against what tills heard.

    restore.py                   the server is lost with its disk; restored is all that was archived
    restore.py --mistake         someone deletes sales by hand; restored is the moment before
    restore.py --kafka           the same with a Kafka that outlives the loss, and knows more than the restored ledger
    restore.py --to s3://…       over an object store (AWS_…), else a folder

It starts a system of its own in a new folder, and prints what may be lost (RPO) and how long it took (RTO), both measured. Exit code 1 when
a sale that was acknowledged before the moment is not there, or is there twice, or wallets or reports do not reconcile.
"""

import argparse
import asyncio
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tills import DrillFailed, Shop  # type: ignore[import-not-found]  # beside this script

from kit.clock import SystemClock
from kit.db import connect
from regulars_cli.up.installation import Installation

CLOCK = SystemClock()
START_SECONDS = 180
EVERY_SECONDS = 2.0


class Machine:
    """A system of its own, as `regulars up` runs it."""

    def __init__(self, folder: Path, *, kafka: bool) -> None:
        self.var = folder / "var"
        self._log = folder / "up.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._command = [sys.executable, "-m", "regulars_cli.main", "up", "--var", str(self.var), "--port", str(port)]
        self._command += ["--kafka", "local" if kafka else ""]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it is ready."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while Installation(self.var).read_up().get("pid") != self._process.pid:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DrillFailed(f"The system does not start:\n{self._log.read_text()}")
            time.sleep(0.05)

    def lose(self) -> None:
        """Kills everything at once, without a warning, as a power cut does."""
        running = Installation(self.var).running_processes()
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process.identity.pid, signal.SIGKILL)
        # PostgreSQL's own processes end when they see that their parent is gone.
        assert self._process is not None  # noqa: S101  # it was started
        self._process.wait()
        deadline = time.monotonic() + 60
        while any(process.identity.alive() for process in running) and time.monotonic() < deadline:
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(120)

    def noted(self, *path: str) -> str:
        """What `up.json` says."""
        found = Installation(self.var).read_up()
        for name in path:
            found = found[name]
        return str(found)

    def regulars(self, *arguments: str, check: bool = True) -> str:
        """What a command of ours says."""
        command = [sys.executable, "-m", "regulars_cli.main", *arguments, "--var", str(self.var)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise DrillFailed(f"`regulars {' '.join(arguments)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout


async def drill(parsed: argparse.Namespace, folder: Path) -> None:
    machine = Machine(folder, kafka=parsed.kafka)
    place = parsed.to or str(folder / "backups")
    await asyncio.to_thread(machine.start)
    try:
        await _drill(parsed, machine, place)
    finally:
        await asyncio.to_thread(machine.stop)


async def _drill(parsed: argparse.Namespace, machine: Machine, place: str) -> None:
    chance = random.Random(parsed.seed)
    shop = Shop(machine.noted("url"), machine.noted("admin_key"), rate=parsed.rate)
    await shop.open()
    shop.start()
    await shop.has_sold(50)
    fetching = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "regulars_cli.main",
            "backup",
            "wal",
            "--to",
            place,
            "--every",
            str(EVERY_SECONDS),
            "--var",
            str(machine.var),
        ),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        print((await asyncio.to_thread(machine.regulars, "backup", "run", "--to", place)).splitlines()[0])
        await shop.has_sold(chance.randint(100, 200))
        target: datetime | None = None
        if parsed.mistake:
            # Whoever makes the mistake knows about when: the moment before it is what is wanted back.
            await asyncio.sleep(0.1)
            target = CLOCK.now()
            await asyncio.sleep(0.1)
            deleted = await _delete_by_hand(machine)
            print(f"a mistake: {deleted} entries of wallets were deleted by hand, at {target:%H:%M:%S}")
            await shop.has_sold(40)
        await asyncio.sleep(chance.uniform(0, 2 * EVERY_SECONDS))
        if target is not None:
            await _covers(machine, place, target)
        print("the server is lost")
        lost_at, began = CLOCK.now(), time.monotonic()
        await asyncio.to_thread(machine.lose)
    finally:
        fetching.kill()
        await fetching.wait()
    selling = asyncio.create_task(shop.close(0))
    await selling
    acknowledged = shop.seen.acknowledged()
    # The disk with the database is gone too.
    postgres = machine.var / "postgres"
    shutil.rmtree(postgres.resolve())
    if postgres.is_symlink():
        postgres.unlink()

    listed = json.loads(await asyncio.to_thread(machine.regulars, "backup", "list", "--json", "--from", place))
    moment = target or datetime.fromisoformat(listed[-1]["restores_until"])
    at = ["--at", target.isoformat()] if target else []
    said = await asyncio.to_thread(machine.regulars, "restore", "--from", place, *at)
    print("\n".join(f"  {line}" for line in said.splitlines()[:4]))
    restored = time.monotonic()
    await asyncio.to_thread(machine.start)
    again = Shop(machine.noted("url"), machine.noted("admin_key"), rate=parsed.rate)
    await again.open()
    again.start()
    await again.has_sold(1)
    first_sale = time.monotonic()

    found = await again.times_recorded()
    there = [each for each in acknowledged if found[each.operation_id]]
    gone = [each for each in acknowledged if not found[each.operation_id]]
    newest = max((each.acknowledged_at for each in there if each.acknowledged_at), default=lost_at)
    # Whatever was acknowledged by then was committed by then.
    before = [each for each in acknowledged if each.acknowledged_at and each.acknowledged_at <= moment]
    await again.check_once_each(before)
    print(f"{len(before):,} sales that were acknowledged by then are recorded once; of {len(gone):,} later ones tills must be asked")
    lost_seconds = max(0.0, (lost_at - newest).total_seconds())

    # The bus and the reports may know of sales that are no more: first all that is on its way, then everything from the ledger.
    await again.has_sold(20)
    await again.close()
    await _nothing_on_its_way(machine)
    before_rebuild = machine.regulars("reconcile", "--reports", check=False).splitlines()[-2:]
    print("before the rebuild:", *(line.strip() for line in before_rebuild))
    print((await asyncio.to_thread(machine.regulars, "reporting", "rebuild", "--from-ledger")).splitlines()[-1])
    rebuilt = time.monotonic()
    print((await asyncio.to_thread(machine.regulars, "reconcile")).strip())
    print((await asyncio.to_thread(machine.regulars, "reconcile", "--reports")).strip())
    await again.check_once_each([*before, *again.seen.acknowledged()])
    print((await asyncio.to_thread(machine.regulars, "backup", "run", "--to", place)).splitlines()[0])
    if target is None:
        print(f"RPO {lost_seconds:.1f} s, with WAL every {EVERY_SECONDS:.0f} s: {len(gone)} of the last acknowledged sales are not there")
    else:
        print(f"RPO: restored to the moment asked for; {len(gone)} sales after it are not there")
    print(
        f"RTO {first_sale - began:.1f} s to the first sale ({restored - began:.1f} s of it the restore);"
        f" {rebuilt - first_sale:.1f} s later the reports were right again"
    )


async def _delete_by_hand(machine: Machine) -> int:
    connection = await connect(machine.noted("environment", "MEMBER_DATABASE_URL"), application_name="mistake")
    try:
        done = await connection.execute("DELETE FROM points_entries")
    finally:
        await connection.close()
    return int(done.split()[-1])


async def _covers(machine: Machine, place: str, at: datetime) -> None:
    """Returns when the archive reaches beyond the moment, as it does seconds later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listed = json.loads(await asyncio.to_thread(machine.regulars, "backup", "list", "--json", "--from", place))
        if datetime.fromisoformat(listed[-1]["restores_until"]) > at + timedelta(milliseconds=1):
            return
        await asyncio.sleep(0.2)
    raise DrillFailed("The archive does not reach the moment.")


async def _nothing_on_its_way(machine: Machine) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        groups = json.loads(await asyncio.to_thread(machine.regulars, "bus", "lag", "--json"))
        connection = await connect(machine.noted("environment", "MEMBER_DATABASE_URL"), application_name="drill")
        waiting = await connection.fetchval("SELECT count(*) FROM outbox")
        await connection.close()
        if not waiting and groups and not any(group["behind"] for group in groups):
            return
        await asyncio.sleep(0.2)
    raise DrillFailed("Events are still on their way after two minutes.")


def main() -> int:
    """Exit code 1 when the drill failed."""
    # Lines appear at once also when they go to a file.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mistake", action="store_true", help="delete by hand, and restore the moment before")
    parser.add_argument("--kafka", action="store_true", help="carry events over a local Kafka, which is not lost")
    parser.add_argument("--to", default="", help="where backups go (default: a folder beside the system)")
    parser.add_argument("--rate", type=float, default=20.0, help="sales a second (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moment")
    with tempfile.TemporaryDirectory(prefix="regulars-drill-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        try:
            asyncio.run(drill(parser.parse_args(), Path(name)))
        except (DrillFailed, TimeoutError) as reason:
            print(f"The drill failed: {reason or 'nothing was sold for too long.'}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
