"""A programme applied by the real command to the running system, all of whose processes hold locks of their own."""

import subprocess
import sys
from pathlib import Path

from tests.integration.api import Api
from tests.integration.system import System

DEMO = Path(__file__).resolve().parents[2] / "programmes" / "demo.yaml"


def apply(system: System, file: Path) -> str:
    command = [str(Path(sys.executable).with_name("regulars")), "programme", "apply", "--yes", "--var", str(system.var), str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_programme_is_applied_while_sales_and_events_go_on(system: System, admin: Api, tmp_path: Path) -> None:
    file = tmp_path / "second.yaml"
    file.write_text(DEMO.read_text(encoding="utf-8").replace("programme_id: demo", "programme_id: second"), encoding="utf-8")
    apply(system, file)
    assert [version["version"] for version in admin.get("/v1/programmes/second")["versions"]] == [1]
    apply(system, file)
    later = (
        file.read_text(encoding="utf-8")
        .replace("effective_from: 2010", "effective_from: 2999")
        .replace("pending_days: 0", "pending_days: 7")
    )
    file.write_text(later, encoding="utf-8")
    assert "pending_days" in apply(system, file)
    assert [version["version"] for version in admin.get("/v1/programmes/second")["versions"]] == [2, 1]
