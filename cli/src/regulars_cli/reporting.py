"""`regulars reporting rebuild [--from-ledger]`: the reports' facts made anew, while reports go on showing those there are."""

import argparse
import sys
import time
from contextlib import closing

from regulars_cli import access
from regulars_cli.imports.client import Gateway, Patience
from regulars_cli.imports.faults import ImportStopped
from regulars_cli.imports.wire import Rebuild

PAUSE_SECONDS = 1.0
UNDER_WAY = {"running", "waiting", "swapping"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `reporting` to the command."""
    parser = subparsers.add_parser("reporting", help="make the reports' facts anew")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    rebuild = actions.add_parser(
        "rebuild",
        help="make all facts anew, and have them take the place of the present ones at once",
        description="Makes the facts anew from the events that the bus retains, or from the ledger where it no longer has all. Reports "
        "show the present facts until then. Exit code 1 if it failed.",
    )
    rebuild.add_argument("--from-ledger", action="store_true", help="from the ledger, whatever the bus retains")
    access.add_arguments(rebuild)
    rebuild.set_defaults(func=run)


def run(parsed: argparse.Namespace) -> int:
    """0: done. 1: it failed, or the gateway could not be asked; the facts are those of before then."""
    try:
        allowed = access.find_access(parsed)
        with closing(Gateway(allowed.url, allowed.admin_key, Patience())) as gateway:
            return _rebuild(gateway, {"source": "ledger"} if parsed.from_ledger else {})
    except (ImportStopped, access.AccessUnknown) as error:
        print(error, file=sys.stderr)
        return 1


def _rebuild(gateway: Gateway, given: dict[str, object]) -> int:
    began = gateway.post("/v1/reports:rebuild", given, Rebuild)
    source = "the ledger" if began.source == "ledger" else "the events on the bus"
    print(f"Making the facts anew from {source}. Reports go on with those there are; stopping this command does not stop it.")
    shown = ""
    # To ask is also to lend one's rights, which a rebuild from the ledger reads it with.
    while (rebuild := gateway.get("/v1/reports/rebuilds/current", Rebuild)).state in UNDER_WAY and rebuild.id == began.id:
        shown = _show(rebuild, shown)
        time.sleep(PAUSE_SECONDS)
    if shown:
        print(file=sys.stderr)
    if rebuild.id != began.id:
        print(f"Another rebuild began, {rebuild.id}; how this one ended is in the log of reporting.", file=sys.stderr)
        return 1
    if rebuild.state != "done":
        print(
            f"The rebuild ended as {rebuild.state}{f' ({rebuild.reason})' if rebuild.reason else ''}; the facts are those of before.",
            file=sys.stderr,
        )
        return 1
    print(f"Done: {rebuild.events:,} events are facts now.")
    if rebuild.poison:
        print(f"{rebuild.poison:,} of them could not be: the log of reporting names them.")
    return 0


def _show(rebuild: Rebuild, shown: str) -> str:
    """How far it is, in place, for a person who looks on."""
    if not sys.stderr.isatty():
        return ""
    of = f" of about {rebuild.expected_events:,}" if rebuild.expected_events else ""
    text = f"{rebuild.events:,}{of} events"
    print(f"\r{text.ljust(len(shown))}", end="", file=sys.stderr, flush=True)
    return text
