import threading
from collections.abc import Callable

import msgspec
import pytest

from cli.tests.imports.history import line, planned
from regulars_cli.imports import sending
from regulars_cli.imports.faults import GatewayFault
from regulars_cli.imports.rules import Command
from regulars_cli.imports.sending import Group, Sender, form_groups
from regulars_cli.imports.wire import Outcome

LATER = "2011-02-02 10:00:00"


def commands(count: int, customers: int = 20) -> list[Command]:
    """Sales of several customers, every third of them taken back."""
    lines = [line(str(100 + number), customer=str(number % customers + 1)) for number in range(count)]
    lines += [line(f"C{100 + number}", quantity=-1, at=LATER, customer=str(number % customers + 1)) for number in range(0, count, 3)]
    return planned(lines).commands


def created(_body: bytes, operation_ids: list[str]) -> list[Outcome]:
    return [Outcome(operation_id, 201) for operation_id in operation_ids]


def send_all(groups: list[Group], send: sending.Send, settle: Callable[[Group, list[Outcome]], None]) -> None:
    sender = Sender(send, settle)
    try:
        for group in groups:
            sender.submit(group)
        sender.finish()
    finally:
        sender.stop()


def test_every_command_is_in_one_group_and_each_customer_keeps_its_order() -> None:
    given = commands(1000)
    groups = list(form_groups(given))
    assert [group.index for group in groups] == list(range(len(groups)))
    sent = [command for group in groups for command in group.commands]
    assert len(sent) == len(given)
    for customer in {command.lane for command in given}:
        assert [each for each in sent if each.lane == customer] == [each for each in given if each.lane == customer]
        assert len({group.lane for group in groups for each in group.commands if each.lane == customer}) == 1


def test_a_reversal_is_in_a_later_group_than_its_sale() -> None:
    for group in form_groups(commands(300, customers=1)):
        sales = {command.body.operation_id for command in group.commands}
        assert not any(command.follows in sales for command in group.commands)


def test_groups_are_bounded_by_commands_and_by_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MAX_LINES", 50)
    many_lines = planned([line(str(number), customer="") for number in range(20) for _ in range(20)]).commands
    assert {group.line_count for group in form_groups(many_lines)} <= {20, 40, 60}
    monkeypatch.setattr(sending, "MAX_COMMANDS", 7)
    assert max(len(group.commands) for group in form_groups(commands(500))) == 7


def test_every_group_is_settled_with_its_own_outcomes_in_the_callers_thread() -> None:
    groups = list(form_groups(commands(500, customers=50)))
    settled: dict[int, list[str]] = {}

    def settle(group: Group, outcomes: list[Outcome]) -> None:
        assert threading.current_thread() is threading.main_thread()
        settled[group.index] = [outcome.operation_id for outcome in outcomes]

    send_all(groups, created, settle)
    assert settled == {group.index: group.operation_ids() for group in groups}


def test_one_group_of_a_lane_is_in_flight_at_a_time_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MAX_COMMANDS", 5)
    groups = list(form_groups(commands(400, customers=50)))
    lane_of = {tuple(group.operation_ids()): group.lane for group in groups}
    in_flight: set[int] = set()
    order: list[str] = []

    def send(body: bytes, operation_ids: list[str]) -> list[Outcome]:
        lane = lane_of[tuple(operation_ids)]
        assert lane not in in_flight
        in_flight.add(lane)
        order.extend(act["operation_id"] for command in msgspec.json.decode(body)["commands"] for act in command.values())
        in_flight.remove(lane)
        return created(body, operation_ids)

    send_all(groups, send, lambda _group, _outcomes: None)
    for command in commands(400, customers=50):
        if command.follows:
            assert order.index(command.follows) < order.index(command.body.operation_id)


def test_after_a_failed_group_nothing_more_is_sent_on_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MAX_COMMANDS", 5)
    sent: list[list[str]] = []

    def send(body: bytes, operation_ids: list[str]) -> list[Outcome]:
        sent.append(operation_ids)
        if len(sent) == 3:
            raise GatewayFault("away")
        return created(body, operation_ids)

    groups = [group for group in form_groups(commands(400, customers=1)) if group.lane == 0] or list(
        form_groups(commands(400, customers=1))
    )
    with pytest.raises(GatewayFault, match="away"):
        send_all(groups, send, lambda _group, _outcomes: None)
    assert sent == [group.operation_ids() for group in groups[:3]]
