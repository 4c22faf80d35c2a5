"""Runs last (conftest.py): what every process wrote while all the tests on the shared system ran, kills and faults included."""

import json
import re

from kit.ids import uuid7
from tests.integration.shop import Till
from tests.integration.system import System

# Everything personal that these tests ever sent, as typed and as kept.
NAMES = ("王芳", "Zhāng", "李秀英", "Kaiser-Wilhelm-Koog", "1988-08-18", "VIP-001")
PHONES = ("1381000", "1391000", "139-1000", "1371000", "137 1000")


def test_nobody_is_named_in_any_log(system: System, till: Till) -> None:
    person = {"name": "李秀英", "phone": "137 1000 3000", "birthday": "1988-08-18", "city": "Kaiser-Wilhelm-Koog"}
    # Refused, malformed and interrupted: faults are what logs quote.
    till.api.refused("/v1/members", person | {"operation_id": uuid7(), "gender": "李秀英"})
    till.api.refused("/v1/members", person | {"operation_id": uuid7(), "李秀英": 1})
    till.api.refused("/v1/members:search", {"phone": 13710003000})
    system.kill("postgres")
    till.sign_up(**person)
    till.api.post("/v1/members:search", {"phone": person["phone"]}, 200)
    for name, text in system.logs().items():
        for value in (*NAMES, *PHONES):
            assert value not in text, f"{name} tells {value!r}"


def test_a_log_line_is_json_and_names_its_request(system: System) -> None:
    for name in ("gateway.log", "member.log"):
        for line in system.logs()[name].splitlines():
            if line.startswith("{"):
                assert {"at", "level", "service", "logger", "message"} <= set(json.loads(line))
            else:
                # A library's own last words, when it is killed; never a stack of ours.
                assert not re.match(r"\s*(Traceback|File )", line), line
