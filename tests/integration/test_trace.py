"""One trace from the till through the gateway, the member service and the bus to the facts of the reports."""

import asyncio
import json
import secrets

import pytest

from kit.bus.connecting import connect
from kit.bus.interface import Message
from kit.ids import uuid7
from regulars_cli.bus.settings import find_bus
from tests.integration.shop import Till
from tests.integration.system import System, running_system, wait_until


def test_one_trace_goes_from_the_till_to_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A line for each event is too much for other times.
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    with running_system() as system:
        till = Till(system.api(system.key("till")), system.store_id, system.till_id)
        member_id = till.sign_up()
        trace_id, request_id = secrets.token_hex(16), uuid7()
        traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        body = till.sale(member_id)
        answer = till.api.ask("POST", "/v1/sales", body, {"traceparent": traceparent, "X-Request-Id": request_id})
        assert answer.status_code == 201, answer.text
        assert answer.headers["traceparent"].split("-")[1] == trace_id
        assert answer.headers["x-request-id"] == request_id
        wait_until(lambda: len(facts_of(system, trace_id)) == 2, "both events of the sale are in the facts")
        on_the_bus = {message.event_id: message for message in asyncio.run(messages_of(system, trace_id))}
        assert sorted(message.type for message in on_the_bus.values()) == [
            "regulars.member.v1.PointsMoved",
            "regulars.member.v1.SaleRecorded",
        ]
        assert {message.key for message in on_the_bus.values()} == {member_id}
        assert {line["event_id"] for line in facts_of(system, trace_id)} == on_the_bus.keys()


def facts_of(system: System, trace_id: str) -> list[dict[str, str]]:
    """What the reporting service wrote of the events of a trace."""
    lines = [json.loads(line) for line in system.logs()["reporting.log"].splitlines() if trace_id in line]
    return [line for line in lines if line["message"] == "an event is in the facts" and line["trace_id"] == trace_id]


async def messages_of(system: System, trace_id: str) -> list[Message]:
    """The messages on the bus whose headers name the trace."""
    async with connect(find_bus(system.var), client_name="test") as bus:
        topics = [spec.name for spec in await bus.topics() if spec.name.startswith("member.")]
        return [
            message
            for topic in topics
            async for messages in bus.read(topic)
            for message in messages
            if message.traceparent.split("-")[1:2] == [trace_id]
        ]
