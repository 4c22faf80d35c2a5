"""The services: whether they answer, and which release of them runs."""

import asyncio
import re
import sys
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from regulars_cli.doctor.databases import skew
from regulars_cli.doctor.findings import Finding, failed, ok, warning
from regulars_cli.doctor.surroundings import Surroundings

SECONDS = 5.0
LEAST_PYTHON = (3, 11)
_BUILD = re.compile(r"^regulars_build_info\{(?P<labels>[^}]*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def check_own_version() -> list[Finding]:
    """Release and Python of the command itself."""
    running = ".".join(map(str, sys.version_info[:3]))
    said = f"This is regulars {version('regulars')} on Python {running}."
    if sys.version_info[:2] < LEAST_PYTHON:
        return [failed("version", "regulars", said, "Run it with Python 3.11 or later.")]
    return [ok("version", "regulars", said)]


async def check_services(around: Surroundings) -> list[Finding]:
    """The gateway by HTTP, member and reporting by gRPC health."""
    checks = [
        _serves(name, setting, around.get(setting), is_vital=is_vital)
        for name, setting, is_vital in (("member", "MEMBER_ADDRESS", True), ("reporting", "REPORTING_ADDRESS", False))
        if around.get(setting)
    ]
    found = list(await asyncio.gather(*checks))
    if around.gateway_url:
        found += await _gateway(around)
    for name, address in around.operators_ports.items():
        found += await _release(name, address)
    return found


async def _serves(name: str, setting: str, address: str, *, is_vital: bool) -> Finding:
    effect = "sales are refused" if is_vital else "sales go on, reports do not"
    advice = f"Start `python -m {name} serve` and read its log, or correct {setting}: until then {effect}."
    try:
        async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            said = await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return failed("address", name, f"{name} at {address} does not answer ({error.code().name}).", advice)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001  # the library raises many kinds for an address that is none
        return failed("address", name, f"{name} at {address} cannot be asked ({type(error).__name__}).", f"Correct {setting}.")
    if said.status != health_pb2.HealthCheckResponse.SERVING:
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(said.status)
        return failed("address", name, f"{name} at {address} answers that it is not ready ({state}).", advice)
    return ok("address", name, f"{name} at {address} serves.")


async def _gateway(around: Surroundings) -> list[Finding]:
    url = around.gateway_url.rstrip("/")
    try:
        async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as http:
            before = around.clock.now()
            answer = await http.get(f"{url}/readyz")
            after = around.clock.now()
        state = answer.json()
        dependencies = {str(name): str(each) for name, each in state["dependencies"].items()}
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "Start `python -m gateway serve` and read its log, or give the address with --url."
        return [failed("address", "gateway", f"The gateway at {url} does not answer ({type(error).__name__}).", advice)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [failed("address", "gateway", f"What answers at {url} is no gateway.", "Correct the address: --url or REGULARS_URL.")]
    found = []
    away = sorted(name for name, each in dependencies.items() if each != "ok")
    if answer.status_code != 200:
        said = f"The gateway at {url} is not ready: {', '.join(away) or 'it is going'}."
        found.append(failed("address", "gateway", said, "See what it lacks above; its log says the rest."))
    elif away:
        said = f"The gateway at {url} is ready, but does not reach {', '.join(away)}."
        found.append(
            warning("address", "gateway", said, "Correct MEMBER_ADDRESS or REPORTING_ADDRESS of the gateway, or start what is away.")
        )
    else:
        found.append(ok("address", "gateway", f"The gateway at {url} is ready."))
    if "date" in answer.headers:
        theirs = parsedate_to_datetime(answer.headers["date"]).astimezone(UTC)
        # The header has whole seconds, and servers write it anew once a second.
        found.append(skew("the gateway", theirs, before, after, precision=timedelta(seconds=2)))
    return found


async def _release(name: str, address: str) -> list[Finding]:
    own = version("regulars")
    try:
        async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as http:
            answer = await http.get(f"http://{address}/metrics")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = f"The operators' port {address} does not answer ({type(error).__name__})."
        return [failed("version", name, said, "See whether the process runs, and its OPS_LISTEN.")]
    found = []
    for match in _BUILD.finditer(answer.text):
        labels = dict(_LABEL.findall(match["labels"]))
        what, runs = f"{labels.get('service')} {labels.get('part')}".strip(), labels.get("version", "")
        said = f"{what} at {address} runs release {runs}"
        if runs == own:
            found.append(ok("version", what, f"{said}."))
        else:
            found.append(
                warning("version", what, f"{said}, and this is {own}.", "Finish the upgrade, or use the `regulars` of that release.")
            )
    said = f"The operators' port {address} names no release."
    return found or [warning("version", name, said, "Is it the operators' port of a Regulars service?")]
