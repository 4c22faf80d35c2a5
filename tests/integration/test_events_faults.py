"""Sales go on while processes are killed, brokers restarted, networks cut and disks full; no event is lost, doubled or out of order.

Over both backends of the bus. Afterwards the member service's lists, the bus and the reports tell the same facts, each once.
`EVENTS_SEED`, `EVENTS_RUNS` and `EVENTS_SECONDS` choose the random runs: how many, from which seed on, and how long each is. The last
word of each is a line that names its seed:

    EVENTS_RUNS=20 EVENTS_SECONDS=25 .venv/bin/python -m pytest tests/integration/test_events_faults.py -k random
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Literal

import pytest

from tests.integration.load import Line
from tests.integration.world import A_WHILE, BACKENDS, World, running_world

SEED = int(os.environ.get("EVENTS_SEED", "1"))
RUNS = int(os.environ.get("EVENTS_RUNS", "1"))
SECONDS = int(os.environ.get("EVENTS_SECONDS", "8"))
# Faults in a run, however slow the machine.
LEAST = 4

pytestmark = pytest.mark.timeout(SECONDS + 400)


def _scope(fixture_name: str, config: pytest.Config) -> Literal["function", "module"]:
    """Each of many random runs begins with a world of its own; in one run of everything the tests share it, to save the time."""
    del fixture_name, config
    return "module" if RUNS == 1 else "function"


@pytest.fixture(scope=_scope, params=BACKENDS)
def shared_world(request: pytest.FixtureRequest) -> Iterator[World]:
    with running_world(request.param) as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    shared_world.ensure_running()
    yield shared_world
    shared_world.relay.mend()


async def test_each_process_in_turn_is_killed(world: World) -> None:
    async with world.load(SEED):
        for kill in world.processes().values():
            await asyncio.to_thread(kill)
            await world.is_whole_again()
            await world.something_is_written()
    await world.check()


async def test_databases_and_brokers_are_restarted(world: World) -> None:
    async with world.load(SEED):
        for restart in world.brokers().values():
            await asyncio.to_thread(restart)
            await world.is_whole_again()
            await world.something_is_written()
    await world.check()


async def test_sales_go_on_while_the_broker_is_cut_off(world: World) -> None:
    async with world.load(SEED):
        world.relay.cut()
        await world.something_is_written(3 * A_WHILE)
        await world.events_wait(3 * A_WHILE)
        world.relay.mend()
        await world.something_is_written()
    await world.check()


async def test_what_the_network_keeps_back_arrives_late_and_once(world: World) -> None:
    async with world.load(SEED):
        world.relay.hold()
        await world.something_is_written(3 * A_WHILE)
        await world.events_wait(3 * A_WHILE)
        world.relay.mend()
        await world.something_is_written()
    await world.check()


async def test_connections_that_fall_silent_are_given_up(world: World) -> None:
    async with world.load(SEED):
        world.relay.silence()
        await world.something_is_written()
    # Without being mended: nobody will ever say that the old connections ended.
    await world.is_settled()
    world.relay.mend()
    await world.check()


async def test_sales_go_on_while_the_disk_of_the_reports_is_full(world: World) -> None:
    async with world.load(SEED):
        with world.disk.full():
            await world.something_is_written(3 * A_WHILE)
            await world.facts_wait(3 * A_WHILE)
        await world.something_is_written()
    await world.check()


@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
async def test_whatever_happens_at_random(world: World, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    async with world.load(seed) as line:
        happened = await let_things_happen(world, line, Random(f"{seed}/faults"))
    checked = await world.check()
    world.check_kept(checked.facts)
    with capsys.disabled():
        told = ", ".join(f"{name}: {count}" for name, count in sorted(happened.items()))
        facts = ", ".join(f"{kind}: {found.total()}" for kind, found in vars(checked.facts).items())
        sys.stdout.write(f"\n{world.backend} seed {seed}, {SECONDS} s: {told}; {facts}; published again: {checked.repeated}\n")


async def let_things_happen(world: World, line: Line, random: Random) -> Counter[str]:
    """Does one thing after another to the world, or two at once, and lets it come back and be written to for a moment."""
    things = faults(world, line, random)
    happened: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    while loop.time() < end or happened.total() < LEAST:
        await line.pause(random.uniform(0.2, 2))
        chosen = dict.fromkeys(random.choices(list(things), k=random.choice((1, 1, 2))))
        happened.update(chosen.keys())
        await asyncio.gather(*(things[name]() for name in chosen))
        await world.is_whole_again()
    return happened


def faults(world: World, line: Line, random: Random) -> dict[str, Callable[[], Awaitable[object]]]:
    """Everything that may happen, by name; each is over when it returns."""

    async def cut() -> None:
        world.relay.cut()
        await line.pause(random.uniform(0.1, 4))
        world.relay.mend()

    async def hold() -> None:
        world.relay.hold()
        await line.pause(random.uniform(0.1, 8))
        world.relay.mend()

    async def break_some() -> None:
        for _ in range(5):
            world.relay.break_one(random)
            await line.pause(random.uniform(0, 0.3))

    async def silence() -> None:
        world.relay.silence()

    async def freeze(name: str) -> None:
        with world.system.frozen(name):
            await line.pause(random.uniform(0.5, 8))

    async def fill_disk() -> None:
        with world.disk.full():
            await line.pause(random.uniform(0.5, 3))

    async def kill_connection() -> None:
        await asyncio.to_thread(world.system.kill_connection, random)

    def in_thread(deed: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(deed)

    return {
        **{f"kill {name}": in_thread(kill) for name, kill in world.processes().items()},
        **{f"restart {name}": in_thread(restart) for name, restart in world.brokers().items()},
        "end a connection of postgres": kill_connection,
        "cut": cut,
        "hold": hold,
        "break": break_some,
        "silence": silence,
        "freeze member": lambda: freeze("member"),
        "freeze reporting": lambda: freeze("reporting"),
        "full disk": fill_disk,
    }
