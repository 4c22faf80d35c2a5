"""A gateway in this process that decides sales, reversals and returns idempotently, and can fail at the worst moments."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from kit.money import first_part

Json = dict[str, Any]
# What to do with the n-th call of an import route: answer, drop the connection before or after deciding, or say 503.
Fate = Literal["answer", "drop_before", "drop_after", "away"]
KEY = "admin-key"


@dataclass
class FakeGateway:
    """The chain's state. `decided` has the answer of every operation, as the gateway stores it."""

    stores: list[Json] = field(default_factory=list)
    tills: dict[str, list[Json]] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    decided: dict[str, tuple[Json, Json]] = field(default_factory=dict)
    sales: dict[str, Json] = field(default_factory=dict)
    reversals: dict[str, Json] = field(default_factory=dict)
    returns: dict[str, Json] = field(default_factory=dict)
    calls: int = 0
    fate: Callable[[int], Fate] = lambda _call: "answer"
    refuse: Callable[[Json], tuple[str, str] | None] = lambda _command: None
    wallet_pages: list[Json] = field(default_factory=list)
    # The answers to other calls, by method and path, and what was sent with them.
    others: dict[str, list[tuple[int, Json]]] = field(default_factory=dict)
    sent: list[tuple[str, Json]] = field(default_factory=list)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, method: str, path: str, body: Json) -> tuple[int, Json] | None:
        """Status and body; None to drop the connection."""
        with self._lock:
            path = path.partition("?")[0]
            if path.endswith(":import"):
                self.calls += 1
                fate = self.fate(self.calls)
                if fate == "drop_before":
                    return None
                if fate == "away":
                    return 503, {"code": "service_unavailable", "detail": "Try again."}
                answer = 200, {"outcomes": self._decide_all(body)}
                return None if fate == "drop_after" else answer
            if path == "/v1/members:search":
                found = self.members.get(body["card"])
                return 200, {"items": [{"id": found, "card": body["card"]}] if found else [], "next_cursor": None}
            if path == "/v1/wallets:reconcile":
                return 200, self.wallet_pages[int(body.get("cursor", 0))]
            if answers := self.others.get(f"{method} {path}"):
                self.sent.append((f"{method} {path}", body))
                return answers.pop(0) if len(answers) > 1 else answers[0]
            items = self.stores if path == "/v1/stores" else self.tills.setdefault(path, [])
            if method == "GET":
                return 200, {"items": items, "next_cursor": None}
            items.append({"id": f"{path}/{len(items)}", **{key: value for key, value in body.items() if key != "operation_id"}})
            return 201, items[-1]

    def state(self) -> tuple[Json, Json, Json, Json]:
        """Everything that was decided, whatever the way to it."""
        return self.members, self.sales, self.reversals, self.returns

    def _decide_all(self, body: Json) -> list[Json]:
        if "members" in body:
            return [self._decide(sign_up, self._sign_up) for sign_up in body["members"]]
        outcomes = []
        for command in body["commands"]:
            ((kind, act),) = command.items()
            decide = {"sale": self._record, "reversal": self._reverse, "return": self._return}[kind]
            outcomes.append(self._decide(act, decide))
        return outcomes

    def _decide(self, act: Json, decide: Callable[[Json], Json]) -> Json:
        operation_id = act["operation_id"]
        if operation_id in self.decided:
            first, outcome = self.decided[operation_id]
            if first != act:
                return _refusal(409, "operation_id_reused", "Another command has this id.") | {"operation_id": operation_id}
            return outcome | {"replayed": True}
        refused = self.refuse(act)
        outcome = _refusal(422, *refused) if refused else decide(act)
        outcome = {"operation_id": operation_id, "status": 201, "replayed": False, "problem": None} | outcome
        self.decided[operation_id] = act, outcome
        return outcome

    def _sign_up(self, sign_up: Json) -> Json:
        if sign_up["card"] in self.members:
            return _refusal(409, "card_already_registered", "Another member has this card.")
        self.members[sign_up["card"]] = f"member-{sign_up['card']}"
        return {"member_id": self.members[sign_up["card"]]}

    def _record(self, sale: Json) -> Json:
        total = sum(line["amount_minor"] for line in sale["lines"])
        assert total == sum(tender["amount_minor"] for tender in sale["tenders"])
        self.sales[sale["operation_id"]] = sale
        return {"amount_minor": total}

    def _reverse(self, reversal: Json) -> Json:
        sale = self.sales.get(reversal["sale_operation_id"])
        if sale is None:
            return _refusal(404, "sale_not_found", "There is no such sale.")
        refund = 0
        for line in reversal["lines"]:
            sold = sale["lines"][line["line_no"] - 1]
            before = sum(
                (
                    Decimal(other["quantity"])
                    for each in self.reversals.values()
                    if each["sale_operation_id"] == sale["operation_id"]
                    for other in each["lines"]
                    if other["line_no"] == line["line_no"]
                ),
                Decimal(0),
            )
            whole, after = Decimal(sold["quantity"]), before + Decimal(line["quantity"])
            if after > whole:
                return _refusal(422, "quantity_exceeds_what_is_left", "More than was sold.")
            refund += first_part(sold["amount_minor"], after, whole) - first_part(sold["amount_minor"], before, whole)
        self.reversals[reversal["operation_id"]] = reversal
        return {"amount_minor": refund}

    def _return(self, returned: Json) -> Json:
        self.returns[returned["operation_id"]] = returned
        return {"amount_minor": sum(line["refund_minor"] for line in returned["lines"])}


def _refusal(status: int, code: str, detail: str) -> Json:
    return {"status": status, "amount_minor": 0, "problem": {"code": code, "detail": detail, "errors": []}}


@contextmanager
def serving(gateway: FakeGateway) -> Iterator[FakeGateway]:
    """The gateway on a port of this machine; `gateway.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._handle("GET", {})

        def do_POST(self) -> None:
            self._handle("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _handle(self, method: str, body: Json) -> None:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                answer: tuple[int, Json] | None = 401, {"code": "unauthorized", "detail": "Give a valid key."}
            else:
                answer = gateway.answer(method, self.path, body)
            if answer is None:
                self.close_connection = True
                return
            status, content = answer
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_arguments: object) -> None:
            """Nothing: a test's output is its failures."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: object) -> None:
            """Nothing: a killed import leaves its connections open."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    gateway.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield gateway
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
