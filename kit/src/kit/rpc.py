"""gRPC between services: one way to serve, to connect, to say who asks, and to refuse.

A call carries the actor's internal token, the trace and the request id as metadata. A `Refusal` travels as `google.rpc.Status` with
`ErrorInfo` (its code) and `BadRequest` (its fields), and comes out on the other side as the same `Refusal`. Both sides count and time every
call, and record a span of it where its trace is recorded.

The health service (grpc.health.v1) knows `live`, `startup`, `ready` and, the same as that, the empty name (`kit.health`).
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kit.db import may_retry
from kit.health import Health
from kit.metrics import REFUSALS, RPC, RPC_CLIENT_CALLS, RPC_CLIENT_DURATION, RPC_SERVER_CALLS, RPC_SERVER_DURATION
from kit.problems import FieldError, Refusal
from kit.telemetry import TraceContext, current_request_id, current_trace, is_sampled, request_context
from kit.tokens import Actor, TokenInvalid, TokenVerifier
from kit.tracing import Kind, recorder

log = logging.getLogger(__name__)

ERROR_DOMAIN = "regulars"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
TRACE_HEADER = "traceparent"
_STATUS_DETAILS = "grpc-status-details-bin"
_HEALTH_METHODS = f"/{grpc_health.SERVICE_NAME}/"

_COMMON_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]

_ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

_CODE_OF_STATUS = {
    400: code_pb2.INVALID_ARGUMENT,
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    409: code_pb2.ABORTED,
    422: code_pb2.FAILED_PRECONDITION,
    429: code_pb2.RESOURCE_EXHAUSTED,
    503: code_pb2.UNAVAILABLE,
}

_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


def current_actor() -> Actor:
    """Whom the call under way acts for, as the interceptor verified.

    Raises:
        Refusal: 401, outside of a verified call.
    """
    actor = _actor.get()
    if actor is None:
        raise unauthenticated()
    return actor


def unauthenticated() -> Refusal:
    """The refusal of a call without a valid internal token."""
    return Refusal("unauthenticated", 401, "Not authenticated", "Send a valid key.")


class Server:
    """A gRPC server with health service, token check and refusals as rich errors.

    Every call must carry `authorization: Bearer <internal token>`, but for the methods in `tokens_inside` (full names such as
    `/regulars.member.v1.WalletService/ExecuteCommands`), whose messages carry the tokens of several actors.
    `register` gets the server and adds the servicers. Without a `health` of its process it is ready while it serves.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        register: Iterable[Callable[[grpc.aio.Server], None]],
        *,
        tokens_inside: Iterable[str] = (),
        max_connection_age_seconds: int = 0,
        health: Health | None = None,
    ) -> None:
        if health is None:
            health = Health()
            health.start()
        self._health = health
        options = [
            *_COMMON_OPTIONS,
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # Two servers on one port would share its calls by chance.
            ("grpc.so_reuseport", 0),
        ]
        if max_connection_age_seconds:
            # Clients ask again who is there when a connection ends: so new replicas get work.
            options += [("grpc.max_connection_age_ms", max_connection_age_seconds * 1000), ("grpc.max_connection_age_grace_ms", 30_000)]
        self._server = grpc.aio.server(interceptors=[_Gate(verifier, frozenset(tokens_inside))], options=options)
        self._servicer = _HealthServicer(health)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        for add in register:
            add(self._server)

    async def start(self, address: str) -> int:
        """Listens on `address` (`host:port`, `unix:/path`; port 0 for any). Returns the port."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Says it is going, takes no new calls, and gives those under way `grace_seconds`."""
        self._health.drain()
        await self._servicer.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    async def wait_until_stopped(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()


class _HealthServicer(grpc_health.aio.HealthServicer):  # type: ignore[name-defined,misc]  # set at import, unknown to the stubs
    """Says how the process stands now, and not as it stood when somebody noted it last."""

    def __init__(self, health: Health) -> None:
        super().__init__()
        self._health = health

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802, ANN401  # as gRPC names and types it
        match request.service:
            case "" | "ready":
                serves = not await self._health.reasons()
            case "live":
                serves = True
            case "startup":
                serves = self._health.is_started
            case _:
                return await super().Check(request, context)
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if serves else states.NOT_SERVING)


class _Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Verifies who calls, names the request for the logs, and turns refusals and faults into statuses."""

    def __init__(self, verifier: TokenVerifier, tokens_inside: frozenset[str]) -> None:
        self._verifier = verifier
        self._tokens_inside = tokens_inside

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        handler = await continuation(details)
        method = details.method
        if handler is None or handler.unary_unary is None or method.startswith(_HEALTH_METHODS):
            return handler  # type: ignore[no-any-return]  # the stubs do not know that there may be none
        RPC.declare((method[1:],))
        metadata = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}

        async def handle(request: object, context: Any) -> Any:  # noqa: ANN401  # the stubs give handlers another type
            begun, code = perf_counter(), "OK"
            above = TraceContext.parse(metadata.get(TRACE_HEADER))
            at = above.child() if above is not None and recorder() is not None else above
            with request_context(at, metadata.get("x-request-id", "")):
                try:
                    if method not in self._tokens_inside:
                        _actor.set(self._verify(metadata.get("authorization", "")))
                    return await handler.unary_unary(request, context)
                except Refusal as refusal:
                    code = code_pb2.Code.Name(_CODE_OF_STATUS.get(refusal.status, code_pb2.UNKNOWN))
                    if not isinstance(refusal, RefusedElsewhere):
                        REFUSALS.of(refusal.code).inc()
                    await _abort(context, refusal)
                except grpc.aio.BaseError:
                    code = "UNKNOWN"
                    raise
                except asyncio.CancelledError:
                    code = "CANCELLED"
                    raise
                except Exception as error:
                    if may_retry(error):
                        # The database goes and comes: who called is told to ask again, and nobody is called to help.
                        code = "UNAVAILABLE"
                        log.info("call put off", extra={"method": method, "error": type(error).__name__})
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
                    code = "INTERNAL"
                    log.exception("call failed", extra={"method": method})
                    await context.abort(grpc.StatusCode.INTERNAL, "internal error")
                finally:
                    seconds, rpc = perf_counter() - begun, method[1:]
                    RPC_SERVER_CALLS.of(rpc, code).inc()
                    RPC_SERVER_DURATION.of(rpc).observe(seconds)
                    if at is not above and at is not None and above is not None:
                        record_call(rpc, "server", at, above.span_id, seconds, code)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _verify(self, authorization: str) -> Actor:
        try:
            return self._verifier.verify(authorization.removeprefix("Bearer "))
        except TokenInvalid:
            raise unauthenticated() from None


async def _abort(context: "grpc.aio.ServicerContext[Any, Any]", refusal: Refusal) -> None:
    status = _rich_status(refusal)
    metadata = ((_STATUS_DETAILS, status.SerializeToString()),)
    await context.abort(_GRPC_CODES[status.code], status.message, metadata)


_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _rich_status(refusal: Refusal) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(
        reason=refusal.code,
        domain=ERROR_DOMAIN,
        metadata={"status": str(refusal.status), "title": refusal.title},
    )
    fields = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=error.pointer, reason=error.code, description=error.detail)
            for error in refusal.errors
        ]
    )
    status = status_pb2.Status(code=_CODE_OF_STATUS.get(refusal.status, code_pb2.UNKNOWN), message=refusal.detail)
    for detail in (info, fields) if refusal.errors else (info,):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


class RefusedElsewhere(Refusal):
    """A refusal that another service made, counted there."""


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal | None:
    """The refusal that the called service raised; None when the call failed for another reason."""
    metadata: Any = error.trailing_metadata()
    for key, value in metadata or ():
        if key == _STATUS_DETAILS and isinstance(value, bytes):
            return _refusal_in(status_pb2.Status.FromString(value))
    return None


def _refusal_in(status: status_pb2.Status) -> Refusal | None:
    info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(fields)
    if info.domain != ERROR_DOMAIN:
        return None
    errors = [FieldError(violation.field, violation.reason, violation.description) for violation in fields.field_violations]
    return RefusedElsewhere(info.reason, int(info.metadata["status"]), info.metadata["title"], status.message, errors)


def create_channel(address: str) -> grpc.aio.Channel:
    """A channel that notices a dead peer, finds a restarted one within half a second, and leaves retries to its caller.

    All that a name stands for (`dns:///…` of a headless service) are called in turn. A call that no server saw, because its connection
    was just ending, goes to another one by itself; whatever a server may have begun is its caller's to repeat.
    """
    options = [
        *_COMMON_OPTIONS,
        ("grpc.service_config", _ROUND_ROBIN),
        # A server that goes ends its connections; who came in its place is found at once.
        ("grpc.dns_min_time_between_resolutions_ms", 500),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    return _Channel(grpc.aio.insecure_channel(address, options=options))


class _Channel(grpc.aio.Channel):
    """A channel whose calls are counted, timed and recorded."""

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> bool | None:  # noqa: ANN401, PYI036  # as gRPC has it
        return await self._inner.__aexit__(*exception)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002  # as gRPC has it
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as gRPC has it
        call = self._inner.unary_unary(method, *arguments, **options)
        if method.startswith(_HEALTH_METHODS):
            return call
        RPC.declare((method[1:],))
        return _Call(method[1:], call)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as gRPC has it
        return self._inner.unary_stream(*arguments, **options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as gRPC has it
        return self._inner.stream_unary(*arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # as gRPC has it
        return self._inner.stream_stream(*arguments, **options)


class _Call:
    """One method of another service. A call that names a recorded trace has a span in it, below which the other side's is."""

    def __init__(self, rpc: str, inner: Any) -> None:  # noqa: ANN401  # a stub's method, of any messages
        self._rpc = rpc
        self._inner = inner
        self._duration = RPC_CLIENT_DURATION.of(rpc)

    async def __call__(
        self,
        request: object,
        /,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # as gRPC has it
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> Any:  # noqa: ANN401  # the answer, of any message
        begun, code = perf_counter(), "OK"
        above = current_trace() if metadata and recorder() is not None else None
        at = None
        if above is not None and metadata is not None:
            at = above.child()
            metadata = [pair if pair[0] != TRACE_HEADER else (TRACE_HEADER, at.header()) for pair in metadata]
        try:
            return await self._inner(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            seconds = perf_counter() - begun
            RPC_CLIENT_CALLS.of(self._rpc, code).inc()
            self._duration.observe(seconds)
            if at is not None and above is not None:
                record_call(self._rpc, "client", at, above.span_id, seconds, code)


class GroupSpans:
    """The spans of one call that carries commands of several traces, one in each: below it is what the command leads to."""

    def __init__(self, rpc: str, kind: Kind) -> None:
        self._rpc = rpc
        self._kind = kind
        self._begun = perf_counter()
        self._spans: dict[str, tuple[TraceContext, TraceContext]] = {}
        self._told: dict[str, tuple[str, dict[str, str | int]]] = {}

    def under(self, traceparent: str) -> str:
        """The `traceparent` of the span in that trace, for the command to go on with."""
        if not is_sampled(traceparent):
            return traceparent
        span = self._spans.get(traceparent)
        if span is None:
            above = TraceContext.parse(traceparent)
            if above is None:
                return traceparent
            span = self._spans[traceparent] = (above, above.child())
        return span[1].header()

    def tell(self, traceparent: str, code: str, **attributes: str | int) -> None:
        """How the command of that trace ended, and what else is to be known of it; of several the last."""
        if traceparent not in self._spans:
            if code not in FAULTS or (above := TraceContext.parse(traceparent)) is None:
                return
            self._spans[traceparent] = (above, above.child())
        self._told[traceparent] = (code, attributes)

    def end(self, code: str, **attributes: str | int) -> None:
        """Records them: the call ended with `code`."""
        seconds = perf_counter() - self._begun
        for traceparent, (above, at) in self._spans.items():
            ended, said = self._told.get(traceparent, (code, {}))
            record_call(self._rpc, self._kind, at, above.span_id, seconds, ended, **attributes, **said)


# Whose fault it is: what a caller did wrong is no fault of the system.
FAULTS = frozenset({"UNKNOWN", "INTERNAL", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"})


def record_call(rpc: str, kind: Kind, at: TraceContext, parent_id: str, seconds: float, code: str, **attributes: str | int) -> None:
    """Records the span of a call, if it is to be recorded."""
    spans, failed = recorder(), code in FAULTS
    if spans is None or not spans.wants(at, failed=failed):
        return
    service, _, method = rpc.rpartition("/")
    said: dict[str, str | int | bool] = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status": code}
    spans.record(rpc, kind, at, parent_id, seconds, said | attributes, fault=code if failed else "")


def call_metadata(token: str | None = None) -> Sequence[tuple[str, str]]:
    """Metadata for a call made on behalf of the request under way: its trace and id, and the actor's token."""
    trace = current_trace()
    pairs = (
        ("authorization", f"Bearer {token}" if token else ""),
        (TRACE_HEADER, trace.header() if trace else ""),
        ("x-request-id", current_request_id()),
    )
    return tuple(pair for pair in pairs if pair[1])


async def is_serving(channel: grpc.aio.Channel, timeout_seconds: float = 1.0) -> bool:
    """Whether the service at the other end answers its health check."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
