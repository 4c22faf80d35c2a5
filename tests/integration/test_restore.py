"""A server that was lost with its disk comes back from its backup, and the ledger and the reports agree again."""

import os
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from regulars_cli.main import main
from regulars_cli.up.installation import Installation
from tests.integration.shop import Till
from tests.integration.system import System, running_system, wait_until


def lose(system: System) -> None:
    """The power goes, and the disk with the database."""
    for process in Installation(system.var).running_processes():
        with suppress(ProcessLookupError):
            os.kill(process.identity.pid, signal.SIGKILL)
    system.stop()
    postgres = system.var / "postgres"
    shutil.rmtree(postgres.resolve())
    if postgres.is_symlink():
        postgres.unlink()


def sales_there(system: System) -> Counter[str]:
    page = system.api(system.key("admin")).get("/v1/sales?limit=500")
    return Counter(sale["operation_id"] for sale in page["items"])


@pytest.mark.timeout(300)
def test_a_lost_server_comes_back_with_every_sale_that_was_archived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_system() as system:
        var, place = ["--var", str(system.var)], str(tmp_path / "backups")

        def sold(count: int) -> list[str]:
            till = Till(system.api(system.key("till")), system.store_id, system.till_id)
            member = till.sign_up()
            return [till.sell(member)["operation_id"] for _ in range(count)]

        def agree(*more: str) -> bool:
            return main(["reconcile", *more, *var]) == 0

        before = sold(3)
        # From here on WAL is kept for the archive.
        assert main(["backup", "wal", "--once", "--to", place, *var]) == 0
        assert main(["backup", "run", *var]) == 0
        before += sold(3)
        assert main(["backup", "wal", "--once", *var]) == 0
        # What people keep as files is what the system takes again.
        assert main(["definitions", "export", str(tmp_path / "definitions"), *var]) == 0
        assert system.till_id in (tmp_path / "definitions" / "stores.yaml").read_text()
        programmes = sorted((tmp_path / "definitions" / "programmes").rglob("*.yaml"))
        assert programmes
        assert all(main(["programme", "apply", str(file), "--dry-run", *var]) == 0 for file in programmes)
        assert "Nothing to do: version 1 of demo says the same." in capsys.readouterr().out
        wait_until(lambda: agree("--reports"), "the reports are as far as the ledger", 60)
        lost = sold(2)
        wait_until(lambda: agree("--reports"), "the reports have what will be lost", 60)
        assert main(["restore", *var]) == 1, "while it runs"

        lose(system)
        assert main(["restore", *var]) == 0
        system.start()
        assert sales_there(system) == Counter(before)
        assert agree()
        # The reports know of sales that are no more.
        assert not agree("--reports")
        assert main(["reporting", "rebuild", "--from-ledger", *var]) == 0
        assert agree("--reports")
        after = sold(2)
        wait_until(lambda: agree("--reports"), "new sales come into the reports", 60)
        assert sales_there(system) == Counter(before + after)
        assert not set(lost) & set(before + after)
        # A restored server begins a new timeline, and a new line of backups.
        assert main(["backup", "run", *var]) == 0
        assert main(["backup", "verify", *var]) == 0
