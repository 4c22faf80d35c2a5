"""`regulars down`: stop what `regulars up` started, and nothing else."""

import argparse
import sys
from pathlib import Path
from signal import SIGTERM

from regulars_cli.up import CannotStart
from regulars_cli.up.installation import SUPERVISOR, Installation
from regulars_cli.up.topology import REPOSITORY

# The sum of what the supervisor gives each process to stop by itself.
STOP_SECONDS = 120


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `down`."""
    parser = subparsers.add_parser("down", help="stop what `regulars up` started", description=__doc__)
    parser.add_argument("--var", type=Path, default=REPOSITORY / "var", help="where the data is (default %(default)s)")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 when nothing runs any more."""
    installation = Installation(arguments.var.absolute())
    try:
        for line in down(installation):
            print(line)
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 1
    except PermissionError:
        print(f"What runs from {installation.folder} belongs to another user; stop it as that user.", file=sys.stderr)
        return 1
    return 0


def down(installation: Installation) -> list[str]:
    """Ask the supervisor to stop everything, or, if it was killed, stop what it left; what was done, as lines."""
    running = installation.running_processes()
    if not running:
        return ["Nothing is running."]
    for process in running:
        if process.name == SUPERVISOR and not process.identity.stop((SIGTERM,), STOP_SECONDS):
            raise CannotStart(f"The supervisor (process {process.identity.pid}) is still stopping after {STOP_SECONDS} seconds.")
    left = installation.stop_leftovers()
    return [f"Stopped the {name} that was left running." for name in left] or ["Stopped."]
