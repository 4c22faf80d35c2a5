"""The gateway as the import sees it: a few calls, each repeated until it is decided or patience ends.

Every write carries operation ids of the mapping, so a call may be sent again as often as needed.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlencode

import httpx
import msgspec

from regulars_cli.imports import wire
from regulars_cli.imports.faults import GatewayFault
from regulars_cli.imports.mapping import Mapping
from regulars_cli.imports.rules import Place

# Statuses that say nothing about the request: it was not decided, or its answer was lost.
UNDECIDED: Final = frozenset({429, 500, 502, 503, 504})
MAX_PAUSE_SECONDS: Final = 5.0
SIGN_UPS_PER_CALL: Final = 500

T = TypeVar("T")
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class Patience:
    """How long to go on without an answer, how to wait between tries, and whom to tell once per wait.

    A gateway that never answered is given up sooner: its address may be wrong.
    """

    seconds: float = 300.0
    seconds_at_first: float = 15.0
    pause: Callable[[float], None] = time.sleep
    notice: Callable[[str], None] = lambda _text: None


class Gateway:
    """Safe to use from several threads. Raises GatewayFault when the gateway refuses a call or stays away."""

    def __init__(self, url: str, key: str, patience: Patience | None = None) -> None:
        self.url = url.rstrip("/")
        self._patience = patience or Patience()
        self._away = threading.Event()
        self._answered = threading.Event()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=httpx.Timeout(120.0, connect=5.0),
            limits=httpx.Limits(max_keepalive_connections=16),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def import_sales(self, body: bytes, operation_ids: list[str]) -> list[wire.Outcome]:
        """One group of commands, encoded; their outcomes in the same order, every one decided."""
        return self._import("/v1/sales:import", body, operation_ids)

    def import_members(self, sign_ups: list[wire.SignUp]) -> Iterator[wire.Outcome]:
        """Outcomes in the order of the sign-ups. A card that is a member's already has that member's id, whoever signed it up."""
        for start in range(0, len(sign_ups), SIGN_UPS_PER_CALL):
            part = sign_ups[start : start + SIGN_UPS_PER_CALL]
            outcomes = self._import("/v1/members:import", _encoder.encode({"members": part}), [each.operation_id for each in part])
            for sign_up, outcome in zip(part, outcomes, strict=True):
                if outcome.status == httpx.codes.CONFLICT:
                    outcome.member_id = self._member_with(sign_up.card)
                yield outcome

    def place_for(self, mapping: Mapping) -> Place:
        """The mapping's store and till, opened if the chain has none of these codes and the mapping names the store."""
        store = self._find("/v1/stores", mapping.store.code, wire.StoreItem) or self._open_store(mapping)
        for what, here, there in (
            ("zone", mapping.store.zone, store.zone),
            ("currency", mapping.store.currency, store.currency),
            ("programme", mapping.store.programme, store.programme_id),
        ):
            if here != there:
                raise GatewayFault(
                    f"The store {store.code} has the {what} {there}, but the mapping {mapping.name} says {here}: set the mapping right, "
                    "or import into another store."
                )
        tills = f"/v1/stores/{store.id}/tills"
        till = self._find(tills, mapping.store.till, wire.TillItem) or self.post(
            tills,
            {
                "operation_id": mapping.operation_id("till", mapping.store.code, mapping.store.till),
                "code": mapping.store.till,
                "name": mapping.store.till,
            },
            wire.TillItem,
        )
        return Place(store.id, till.id)

    def post(self, path: str, body: dict[str, object], answer: type[T]) -> T:
        """Any other POST, and its answer."""
        return _decoded(self._call("POST", path, _encoder.encode(body)), answer)

    def get(self, path: str, answer: type[T]) -> T:
        """Any other GET, and its answer."""
        return _decoded(self._call("GET", path), answer)

    def _open_store(self, mapping: Mapping) -> wire.StoreItem:
        store = mapping.store
        if store.name is None:
            raise GatewayFault(f"The chain has no store {store.code}: open it first, or give the mapping's store a name to open it under.")
        return self.post(
            "/v1/stores",
            {
                "operation_id": mapping.operation_id("store", store.code),
                "code": store.code,
                "name": store.name,
                "zone": store.zone,
                "currency": store.currency,
                "programme_id": store.programme,
            },
            wire.StoreItem,
        )

    def _member_with(self, card: str) -> str | None:
        found = self.post("/v1/members:search", {"card": card}, dict[str, list[wire.Member] | str | None])["items"]
        return found[0].id if isinstance(found, list) and found else None

    def _find(self, path: str, code: str, item: type[T]) -> T | None:
        cursor: str | None = None
        while True:
            query = urlencode({"limit": 500, **({"cursor": cursor} if cursor else {})})
            page = _decoded(self._call("GET", f"{path}?{query}"), _Page)
            for each in page.items:
                if each.get("code") == code:
                    return msgspec.convert(each, item)
            cursor = page.next_cursor
            if cursor is None:
                return None

    def _import(self, path: str, body: bytes, operation_ids: list[str]) -> list[wire.Outcome]:
        def undecided(answer: bytes) -> bool:
            return any(each.status in UNDECIDED for each in _decoded(answer, wire.Outcomes).outcomes)

        outcomes = _decoded(self._call("POST", path, body, undecided), wire.Outcomes).outcomes
        if [each.operation_id for each in outcomes] != operation_ids:
            raise GatewayFault(f"{self.url}{path} did not answer each command in order: is the address that of a Regulars gateway?")
        return outcomes

    def _call(self, method: str, path: str, body: bytes = b"", undecided: Callable[[bytes], bool] = lambda _answer: False) -> bytes:
        """The body of a successful answer. Calls again while nothing was decided."""
        began = time.monotonic()
        pause_seconds = 0.1
        while True:
            retry_after = 0.0
            try:
                response = self._http.request(method, path, content=body)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise GatewayFault(f"{self.url} is not an address of a gateway.") from error
            except httpx.TransportError as error:
                reason = f"cannot be reached ({str(error) or type(error).__name__})"
            else:
                self._answered.set()
                if response.is_success and not undecided(response.content):
                    self._away.clear()
                    return response.content
                if not response.is_success and response.status_code not in UNDECIDED:
                    raise GatewayFault(f"The gateway refused {method} {path.partition('?')[0]}: {_refusal(response)}")
                reason = f"cannot decide now ({response.status_code})"
                retry_after = float(seconds) if (seconds := response.headers.get("Retry-After", "")).isdigit() else 0.0
            if time.monotonic() - began > (self._patience.seconds if self._answered.is_set() else self._patience.seconds_at_first):
                raise GatewayFault(f"The gateway at {self.url} {reason}. Start the same command again when it is back.")
            if not self._away.is_set():
                self._away.set()
                self._patience.notice(f"The gateway at {self.url} {reason}; trying again.")
            self._patience.pause(max(retry_after, pause_seconds * random.uniform(0.5, 1.0)))  # noqa: S311  spreads retries, hides nothing
            pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)


class _Page(msgspec.Struct):
    items: list[dict[str, object]]
    next_cursor: str | None = None


def _decoded(answer: bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=form)
    except msgspec.DecodeError as error:
        raise GatewayFault(f"The gateway's answer is not what this version understands ({error}).") from error


def _refusal(response: httpx.Response) -> str:
    try:
        problem = msgspec.json.decode(response.content, type=wire.Problem)
    except msgspec.DecodeError:
        return f"{response.status_code}."
    return f"{said(problem)} ({response.status_code} {problem.code})"


def said(problem: wire.Problem) -> str:
    """A problem in one line: what is wrong, and with which fields."""
    fields = "; ".join(f"{each.pointer}: {each.detail}" for each in problem.errors)
    return " ".join(part for part in (problem.detail, fields) if part) or "no reason was given"
