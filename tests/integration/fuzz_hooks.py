"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): lets what it makes up reach the rules.

Drawn at random, a body names no store that exists and its tenders never add up, so that all but the first check stays untried. About half
of the well-formed requests are therefore made to make sense: ids become those of things that are there (FUZZ_THINGS, JSON), and a sale's
sums are done. What is drawn malformed stays as it is.
"""

import json
import os
from typing import Any
from zlib import crc32

import schemathesis

from kit.money import line_amount_minor

Json = dict[str, Any]
THINGS: Json = json.loads(os.environ["FUZZ_THINGS"])


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: "schemathesis.Case[Any]", kwargs: Json) -> None:  # noqa: ARG001  # its signature
    if case.meta is None or case.meta.generation.mode.is_negative or not isinstance(case.body, dict):
        return
    # By what was drawn, so that a failure is the same when it is tried again.
    drawn = crc32(repr(case.body).encode())
    if drawn % 4:
        for name in case.path_parameters or {}:
            if name in THINGS:
                case.path_parameters[name] = THINGS[name]
        case.body = sensible(case.body, {**THINGS, "operation_id": f"fuzz-{drawn}"})


def sensible(value: Any, things: Json) -> Any:
    """The same with ids of things that are there, and with sums that are right."""
    match value:
        case dict():
            made = {name: things.get(name, sensible(each, things)) if each is not None else None for name, each in value.items()}
            if lines := made.get("lines"):
                made["lines"] = [line | {"line_no": number} for number, line in enumerate(lines, 1)]
            if "tenders" in made:
                add_up(made)
            return made
        case list():
            # In a group each write has an operation of its own.
            return [sensible(each, {**things, "operation_id": f"{things['operation_id']}-{number}"}) for number, each in enumerate(value)]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value


def add_up(sale: Json) -> None:
    """Does a sale's sums, as far as they stay within what the API takes."""
    sale["discounts"] = []
    sale.pop("points_to_spend", None)
    for line in sale["lines"]:
        line.pop("serials", None)
        line.pop("discounts", None)
        line["amount_minor"] = line_amount_minor(line["quantity"], line["unit_price"], "CNY")
    payable = sum(line["amount_minor"] for line in sale["lines"])
    sale["tenders"] = [{"type": "cash", "amount_minor": payable}] if payable else []
