"""A running system for the session, and its tills and keys."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import pytest

from kit.ids import uuid7
from tests.integration.api import Api
from tests.integration.given import given_system, is_given
from tests.integration.shop import Till
from tests.integration.system import System, running_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what the processes of its system logged as errors: their folder is gone afterwards."""
    report = yield
    if report.failed:
        for used in getattr(item, "funcargs", {}).values():
            system = getattr(used, "system", used)
            if isinstance(system, System):
                report.sections.append(("Errors logged by the system", "\n".join(system.errors_logged()[-10:])))
                break
    return report


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The system that tests share which leave it as they found it: one of our own, unless TEST_SYSTEM names another."""
    if is_given():
        with closing(given_system()) as given:
            yield given
        return
    with running_system() as running:
        yield running


@pytest.fixture
def admin(system: System) -> Api:
    """The API with the admin key."""
    return system.api(system.key("admin"))


@pytest.fixture
def till(system: System) -> Till:
    """A till with the till key."""
    return Till(system.api(system.key("till")), system.store_id, system.till_id)


@pytest.fixture
def member(till: Till, admin: Api) -> Callable[[int], str]:
    """Signs up a member with so many points to begin with."""

    def make(points: int = 0) -> str:
        member_id = till.sign_up()
        if points:
            admin.post(f"/v1/members/{member_id}/points:adjust", {"operation_id": uuid7(), "points": points, "reason": "welcome"})
        return member_id

    return make


# The fuzz leaves much behind, and the logs are read when everything else has been written into them.
LAST = ("test_openapi_fuzz.py", "test_logs.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts these tests at the end; leaves those out that would lay hands on a system that was given."""
    if is_given() and (left_out := [item for item in items if item.get_closest_marker("own_system")]):
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: LAST.index(item.path.name) if item.path.name in LAST else -1)
