"""Restoring the embedded PostgreSQL of an installation on this machine."""

from collections.abc import Callable
from pathlib import Path

from kit.clock import Clock
from regulars_cli.backup import CannotBackUp
from regulars_cli.backup.restoring import Owner, Plan, restore
from regulars_cli.backup.sealing import Opener
from regulars_cli.backup.servers import Server
from regulars_cli.backup.stores import Store
from regulars_cli.up import CannotStart
from regulars_cli.up.installation import Installation
from regulars_cli.up.postgres import EmbeddedPostgres


def restore_installation(
    var: Path, store: Store, chosen: Plan, opener: Opener, clock: Clock, say: Callable[[str], None], *, recovers: bool
) -> tuple[Path, Path | None]:
    """Makes the installation's database anew. Returns its folder, and where the one before is now.

    Raises:
        CannotBackUp: the system runs, or the backup is not what it should be; nothing was changed.
    """
    installation = Installation(var.absolute())
    try:
        with installation.locked():
            for name in installation.stop_leftovers():
                say(f"Stopped the {name} that an earlier start left running.")
            place = EmbeddedPostgres(installation.postgres).find_place()
            # What a killed server left; that none runs was just seen to.
            (place.folder / "postmaster.pid").unlink(missing_ok=True)
            owner = Owner(place.account.given, place.account.options()) if place.account is not None else None
            server = Server("", place.binaries)
            aside = restore(store, chosen, opener, place.folder, server, clock, say, owner=owner, recovers=recovers)
    except CannotStart as reason:
        raise CannotBackUp(str(reason)) from None
    return place.folder, aside
