"""Log lines name the request and hold no text of an exception; the trace context follows W3C."""

import json
import logging
import sys
from importlib.metadata import version

import pytest

from kit.telemetry import JsonLines, TraceContext, current_request_id, current_trace, describe, is_sampled, request_context

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_traceparent_is_read_and_written() -> None:
    trace = TraceContext.parse(f"00-{TRACE_ID}-{SPAN_ID}-01")
    assert trace == TraceContext(TRACE_ID, SPAN_ID, "01")
    child = trace.child()
    assert (child.trace_id, child.flags) == (TRACE_ID, "01")
    assert child.span_id != SPAN_ID
    assert TraceContext.parse(child.header()) == child


def test_a_trace_that_begins_here_is_not_recorded_unless_it_is_said() -> None:
    begun = TraceContext.new()
    assert not begun.is_sampled
    assert begun.sampled().child().is_sampled
    assert [is_sampled(text) for text in ("", "x", begun.header(), begun.sampled().header())] == [False, False, False, True]
    assert [TraceContext(TRACE_ID, SPAN_ID, flags).is_sampled for flags in ("00", "01", "02", "ff")] == [False, True, False, True]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "x",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
    ],
)
def test_a_malformed_traceparent_is_none(header: str | None) -> None:
    assert TraceContext.parse(header) is None


def test_a_log_line_names_the_request_and_no_exception_text() -> None:
    trace = TraceContext.new()
    with request_context(trace, "r-1"):
        try:
            raise ValueError("13800138000")
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, __file__, 1, "call %s", ("failed",), sys.exc_info())
        record.method = "/a/B"
        line = JsonLines("member", "serve").format(record)
    said = json.loads(line)
    assert said["message"] == "call failed"
    assert (said["part"], said["version"]) == ("serve", version("regulars-kit"))
    assert (said["service"], said["level"], said["trace_id"], said["request_id"], said["method"]) == (
        "member",
        "error",
        trace.trace_id,
        "r-1",
        "/a/B",
    )
    assert said["exception"]["type"] == "ValueError"
    assert "13800138000" not in line


def test_a_circle_of_causes_ends_where_it_began() -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    itself = OSError()
    itself.__cause__ = itself
    assert describe(first) == {"type": "ValueError", "frames": [], "cause": {"type": "KeyError", "frames": []}}
    assert describe(itself) == {"type": "OSError", "frames": []}


def test_the_name_that_a_server_gives_an_error_is_told_and_its_text_is_not() -> None:
    named, unnamed = ValueError("13800138000"), ValueError()
    named.name = "MEMORY_LIMIT_EXCEEDED"  # type: ignore[attr-defined]  # as ClickHouse's errors have
    unnamed.name = "what somebody typed"  # type: ignore[attr-defined]
    assert describe(named) == {"type": "ValueError", "frames": [], "name": "MEMORY_LIMIT_EXCEEDED"}
    assert describe(unnamed) == {"type": "ValueError", "frames": []}


def test_the_request_context_ends_with_its_block() -> None:
    with request_context(TraceContext.new(), "r-1"):
        assert current_request_id() == "r-1"
    assert (current_request_id(), current_trace()) == ("", None)
