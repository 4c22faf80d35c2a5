"""Requests drawn from the OpenAPI document, well-formed and not: no 5xx, nothing undocumented, nothing malformed let in."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.api import Api
from tests.integration.shop import Till, now
from tests.integration.system import System

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "20261121"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(SECONDS + 120)
def test_no_request_drawn_from_the_document_finds_a_fault(
    system: System, admin: Api, till: Till, member: Callable[..., str], tmp_path: Path
) -> None:
    sale = till.sell(member(1000))
    things = {
        **till.place, "member_id": sale["member_id"], "sale_id": sale["id"], "sale_operation_id": sale["operation_id"],
        "programme_id": "demo", "currency": "CNY", "zone": "Asia/Shanghai",
        "sold_at": now(hours=1), "reversed_at": now(), "returned_at": now(),
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("st")), "run", f"{system.url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {system.key('admin')}", "--checks", ",".join(CHECKS), "--continue-on-failure"]
    # What is found is told as found: the seconds are for looking.
    command += ["--seed", str(SEED), "--max-time", str(SECONDS), "--max-examples", "15", "--no-shrink"]
    hooks = {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.integration.fuzz_hooks", "FUZZ_THINGS": json.dumps(things)}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | hooks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert admin.differences() == [], "whatever was let in, every balance is proven"
    assert '"level": "error"' not in system.logs()["gateway.log"] + system.logs()["member.log"]
