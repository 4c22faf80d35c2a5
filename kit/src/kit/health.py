"""How a process stands, for whoever starts, watches and replaces it.

startup   it was put together
live      its event loop turns: whoever asks has an answer
ready     it can do its work, was put together, and is not about to stop
"""

import asyncio
from collections.abc import Awaitable, Callable

Check = Callable[[], Awaitable[str]]

CHECK_SECONDS = 2.0
# Several who ask within this time have one answer: probes must not cost what they probe.
REMEMBERED_SECONDS = 1.0


class Health:
    """One process's. A check answers with nothing when its part does its work, and else with a word for why it does not."""

    def __init__(self) -> None:
        self.is_started = False
        self.is_draining = False
        self._checks: dict[str, Check] = {}
        self._asking: asyncio.Task[list[str]] | None = None
        self._asked_at = 0.0

    def require(self, name: str, check: Check) -> None:
        """Readiness needs this too."""
        self._checks[name] = check

    def start(self) -> None:
        """Says that everything is put together."""
        self.is_started = True

    def drain(self) -> None:
        """Says that it will stop: it is not ready from now on, and still answers."""
        self.is_draining = True

    async def reasons(self) -> list[str]:
        """Why it is not ready; empty: it is."""
        if self.is_draining:
            return ["draining"]
        if not self.is_started:
            return ["starting"]
        now = asyncio.get_running_loop().time()
        if self._asking is None or (self._asking.done() and now - self._asked_at > REMEMBERED_SECONDS):
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> list[str]:
        said = await asyncio.gather(*(_answer(check) for check in self._checks.values()))
        return [f"{name}: {reason}" for name, reason in zip(self._checks, said, strict=True) if reason]


async def _answer(check: Check) -> str:
    try:
        return await asyncio.wait_for(check(), CHECK_SECONDS)
    except TimeoutError:
        return "no answer"
    except Exception as error:  # noqa: BLE001  # whatever it is, what was checked does not do its work
        return type(error).__name__
