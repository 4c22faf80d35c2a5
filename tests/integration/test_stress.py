"""Sixty-four clients write at once while the gateway, the member service and PostgreSQL are killed at random moments.

Afterwards nothing that was answered is lost, nothing is done twice or by half, and every client can find out what became of each of its
writes. `STRESS_SECONDS` and `STRESS_SEED` choose how long and which draw; the same seed draws the same acts, in another order of time.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

import pytest

from tests.integration.load import Client, Line, Shop, open_members, together
from tests.integration.shop import Till
from tests.integration.stored import check_balances, check_what_is_stored
from tests.integration.system import System, running_system, wait_until

SECONDS = int(os.environ.get("STRESS_SECONDS", "60"))
SEED = int(os.environ.get("STRESS_SEED", "20261121"))
CLIENTS = 64
MEMBERS = 60
PARTS = ("gateway", "member", "postgres")


async def kill_at_random(system: System, line: Line, is_over: Callable[[], bool]) -> Counter[str]:
    """Kills one part, or several at once, then lets everything come back and be written to for a moment."""
    random = Random(f"{SEED}/kills")
    deeds: dict[str, Callable[[], None]] = {
        **{name: partial(system.kill, name) for name in PARTS},
        "connection": lambda: system.kill_connection(random),
    }
    killed: Counter[str] = Counter()
    # Each of them once, whatever is drawn and however slow the machine.
    first = random.sample(PARTS, len(PARTS))
    while first or not is_over():
        await line.pause(random.uniform(0.3, 3))
        # PostgreSQL takes longest to come back, and meanwhile nothing is written that the others could be killed at.
        for name in [first.pop()] if first else dict.fromkeys(random.choices(list(deeds), (4, 4, 2, 1), k=random.choice((1, 1, 2)))):
            deeds[name]()
            killed[name] += 1
        await asyncio.to_thread(wait_until, system.is_whole, "everything is back")
    return killed


async def stress(system: System, shop: Shop) -> tuple[Counter[str], Line]:
    """Lets the clients write while parts are killed, and then look up everything that they wrote."""
    line = Line(system.url, system.key("admin"))
    clients = [Client(number, shop, line, SEED) for number in range(CLIENTS)]
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS

    def is_over() -> bool:
        return loop.time() > end

    watching = asyncio.create_task(line.watch())
    try:
        killing = asyncio.create_task(kill_at_random(system, line, is_over))
        await together(client.run(is_over) for client in clients)
        killed = await killing
        await together(client.look_everything_up() for client in clients)
    finally:
        line.over.set()
        await watching
    return killed, line


@pytest.mark.timeout(SECONDS + 300)
async def test_whatever_is_killed_nothing_is_lost_doubled_or_half_done(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\nSTRESS_SECONDS={SECONDS} STRESS_SEED={SEED}\n")
    with running_system() as system:
        admin = system.api(system.key("admin"))
        till = Till(admin, system.store_id, system.till_id)
        shop = Shop(till, open_members(admin, MEMBERS))
        killed, line = await stress(system, shop)
        outcomes = Counter(f"{w.status} {'' if w.is_done else w.document['code']}".strip() for w in shop.writes)
        with capsys.disabled():
            told = ", ".join(f"{name}: {count}" for name, count in (*killed.items(), *outcomes.most_common(), *line.troubles.items()))
            sys.stdout.write(f"\n{len(shop.writes)} writes; {told}\n")
        check_what_is_stored(shop, list(admin.items("/v1/sales", limit=500)))
        check_balances(shop, admin)
        assert admin.differences() == []
        assert system.errors_logged() == [], "nothing surprised a service"
        phones = [w.document["phone"] for w in shop.writes if w.path == "/v1/members" and w.is_done]
        assert len(phones) == len(set(phones)), "one live member for a verified phone"
        assert "operation_id_reused" not in {w.document.get("code") for w in shop.writes}
        raced = {w.document.get("code") for w in shop.writes if w.is_reversal}
        assert {"quantity_already_reversed", "nothing_left_to_reverse"} <= raced, "clients did meet"
