"""What services export is what the registry declares, however strange the requests, and says what happened; health follows the parts."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit import metrics
from kit.ids import uuid7
from regulars_cli.up.kafka import free_ports
from tests.integration.shop import Till
from tests.integration.system import System, running_system, wait_until

pytestmark = pytest.mark.own_system

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
SERVICES = ("gateway", "member", "reporting")
# Of one process, histograms' buckets and all.
MOST_SERIES = 1500
DRAIN_SECONDS = 5


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """A system with operators' ports."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DRAIN_SECONDS_BEFORE", str(DRAIN_SECONDS))
        with running_system(ops_port=three_ports()) as running:
            yield running


def three_ports() -> int:
    """The first of three free ports in a row."""
    while True:
        first = free_ports(1)[0]
        try:
            with ExitStack() as held:
                for number in range(3):
                    held.enter_context(socket.create_server(("127.0.0.1", first + number)))
        except OSError:
            continue
        return first


def ops(system: System, service: str, path: str, *, change: object = None) -> httpx.Response:
    """What the operators' port of a service answers."""
    url = f"http://{system.ops[service]}{path}"
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.get(url) if change is None else client.put(url, json=change)


def exported(system: System, service: str) -> Series:
    """Every series of a service's own metrics, with its value."""
    text = ops(system, service, "/metrics").raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith(metrics.PREFIX)
    }


def value(system: System, service: str, name: str, **labels: str) -> float:
    """What stands there now; 0 for no such series."""
    return exported(system, service).get((metrics.PREFIX + name, frozenset(labels.items())), 0.0)


@pytest.fixture
def till(system: System) -> Till:
    """A till of the demo chain."""
    return Till(system.api(system.key("till")), system.store_id, system.till_id)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_exports_what_the_registry_declares_for_it_and_no_more(system: System, service: str) -> None:
    parts = {part for part in metrics.PARTS if part.startswith(service)}
    # The gateway is one part; the others run whole here.
    declared = {metric.name: metric for metric in metrics.all_metrics() if not parts.isdisjoint(metric.parts)}
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in text_string_to_metric_families(ops(system, service, "/metrics").text)
        if family.name.startswith(metrics.PREFIX)
    }
    assert families.keys() == declared.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (declared[name].kind, declared[name].meaning)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {label.name for label in declared[name].labels}
            for label in declared[name].labels:
                allowed = {*label.listed, metrics.OTHER} if label.listed else None
                assert allowed is None or sample.labels[label.name] in allowed


def comes_to(figure: Callable[[], float], expected: float) -> bool:
    """Whether it stands there."""
    return figure() == expected


def test_figures_follow_what_happens(system: System, till: Till) -> None:
    def wait_for(service: str, name: str, expected: float, **labels: str) -> None:
        wait_until(lambda: value(system, service, name, **labels) == expected, f"{name} {labels} is {expected}")

    before = {service: exported(system, service) for service in SERVICES}

    def added(service: str, name: str, **labels: str) -> float:
        key = (metrics.PREFIX + name, frozenset(labels.items()))
        return exported(system, service).get(key, 0.0) - before[service].get(key, 0.0)

    member_id = till.sign_up()
    sale = till.sale(member_id)
    recorded = till.api.post("/v1/sales", sale)
    till.api.post("/v1/sales", sale)
    till.api.refused("/v1/sales", till.sale(uuid7()))
    till.reverse(recorded)
    assert added("member", "members_signed_up_total") == 1
    assert [added("member", "sales_total", outcome=outcome) for outcome in ("recorded", "replayed", "refused", "failed")] == [1, 1, 1, 0]
    assert added("member", "sales_net_minor_total", currency="CNY") == recorded["net_minor"]
    assert added("member", "refunds_minor_total", currency="CNY") == recorded["payable_minor"]
    assert added("member", "reversals_total", outcome="recorded") == 1
    assert added("member", "refusals_total", code="member_not_found") == 1
    assert added("gateway", "http_requests_total", route="/v1/sales", method="POST", status="201") == 2
    assert added("gateway", "http_request_duration_seconds_count", route="/v1/sales", method="POST") == 3
    execute = "regulars.member.v1.WalletService/ExecuteCommands"
    assert added("gateway", "rpc_client_calls_total", rpc=execute, code="OK") == added(
        "member", "rpc_server_calls_total", rpc=execute, code="OK"
    )
    assert value(system, "member", "relay_leading") == 1
    assert value(system, "member", "db_pool_size") >= 8
    for topic, number in (("member.sale.v1", 2), ("member.points.v1", 2), ("member.member.v1", 1)):
        done = partial(added, "reporting", "consumer_messages_total", group="reporting", topic=topic, outcome="done")
        wait_until(partial(comes_to, done, number), f"{topic} came in")
    wait_for("member", "outbox_oldest_age_seconds", 0)
    wait_for("reporting", "consumer_lag_messages", 0, group="reporting", topic="member.sale.v1")
    assert added("reporting", "facts_inserted_total", table="sales") >= 1


def test_whatever_is_sent_series_are_few_and_quote_nothing(system: System, till: Till) -> None:
    random = Random(7)
    words = [f"strange{random.randrange(10**9)}" for _ in range(50)]
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW", "PROPFIND"]
    paths = [
        "/v1/{}",
        "/v1/sales/{}",
        "/v1/members/{}/points",
        "/{}",
        "/v1/reports/{}",
        "/v1/stores/{}/tills",
        "/v1/sales:{}",
        "/docs/assets/{}",
    ]
    keys = [system.key("till"), system.key("admin"), "rk_wrong"]

    def ask(_: int) -> int:
        word = random.choice(words)
        with httpx.Client(trust_env=False, timeout=30) as client:
            answer = client.request(
                random.choice(methods),
                system.url + random.choice(paths).format(word),
                headers={"Authorization": f"Bearer {random.choice(keys)}", "X-Request-Id": word},
                json=random.choice([None, {}, {"operation_id": word, "currency": word}]),
            )
        return answer.status_code

    with ThreadPoolExecutor(4) as several:
        statuses = set(several.map(ask, range(400)))
    assert {401, 404, 405} <= statuses
    for number in range(20):
        till.api.refused("/v1/sales", till.sale(uuid7(), currency=f"X{number:02}"))
    for service in SERVICES:
        series = exported(system, service)
        assert len(series) <= MOST_SERIES, service
        text = str(sorted((name, sorted(labels)) for name, labels in series))
        assert not [word for word in words if word in text]
        assert "X07" not in text
    others = sum(
        v
        for (name, labels), v in exported(system, "gateway").items()
        if name == "regulars_http_requests_total" and ("route", "other") in labels
    )
    assert others >= 100


def test_a_level_is_changed_for_one_service_while_it_runs(system: System, till: Till) -> None:
    def told() -> bool:
        return "an event is in the facts" in system.logs()["reporting.log"]

    assert not told()
    answer = ops(system, "reporting", "/log-level", change={"level": "debug", "logger": "reporting.facts.consumers", "minutes": 1})
    assert answer.status_code == 200, answer.text
    till.sell()
    wait_until(told, "it tells more")
    assert ops(system, "member", "/log-level").json()["changed"] == []


def is_well(system: System, service: str, path: str) -> bool:
    """Whether the operators' port says so."""
    return ops(system, service, path).status_code == 200


@contextmanager
def frozen_database(system: System) -> Iterator[None]:
    """Within the block PostgreSQL is there and nobody in it does anything."""
    server = psutil.Process(system.pid("postgres"))
    every = [server, *server.children()]
    for process in every:
        process.suspend()
    try:
        yield
    finally:
        for process in every:
            process.resume()


def test_a_service_without_its_database_lives_and_is_not_ready(system: System) -> None:
    for service in SERVICES:
        for path in ("/livez", "/startupz", "/readyz"):
            wait_until(partial(is_well, system, service, path), f"{service}{path}")
    with frozen_database(system):
        wait_until(lambda: ops(system, "member", "/readyz").status_code == 503, "member is not ready", 30)
        assert any(reason.startswith("database: ") for reason in ops(system, "member", "/readyz").json()["reasons"])
        assert ops(system, "member", "/livez").status_code == 200
        # Its own database answers.
        assert ops(system, "reporting", "/readyz").status_code == 200
    wait_until(lambda: ops(system, "member", "/readyz").status_code == 200, "member is ready again")


def test_a_gateway_that_is_told_to_stop_answers_on_and_loses_no_request(system: System, till: Till) -> None:
    stopped, statuses = threading.Event(), []
    begun = system.pid("gateway")

    def sell() -> None:
        with httpx.Client(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {system.key('till')}"}) as client:
            while not stopped.is_set():
                statuses.append(client.post(f"{system.url}/v1/sales", json=till.sale()).status_code)

    def ready() -> Any:
        with httpx.Client(trust_env=False, timeout=5) as client:
            return client.get(f"{system.url}/readyz")

    with ThreadPoolExecutor(1) as selling:
        done = selling.submit(sell)
        wait_until(lambda: len(statuses) > 5, "sales go on")
        system.kill("gateway", signal.SIGTERM)
        wait_until(lambda: ready().status_code == 503, "it is not ready", DRAIN_SECONDS)
        assert ops(system, "gateway", "/readyz").json()["reasons"] == ["draining"]
        assert ops(system, "gateway", "/livez").status_code == 200
        sold = len(statuses)
        wait_until(lambda: len(statuses) > sold + 5, "it still sells")
        stopped.set()
        done.result()
    assert set(statuses) == {201}
    wait_until(lambda: not psutil.pid_exists(begun) and system.is_whole(), "another is there")
    assert "Traceback" not in system.logs()["gateway.log"]
