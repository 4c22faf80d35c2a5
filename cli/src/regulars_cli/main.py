"""The command `regulars`: one subcommand each for what an operator does.

Only the module of the subcommand called is imported, so that the long-running `regulars up` stays small.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

# Each module has `add_parser(subparsers)`, which sets `func`: a function from the parsed arguments to the exit code.
COMMANDS = {
    "up": "regulars_cli.up.start",
    "down": "regulars_cli.up.stop",
    "programme": "regulars_cli.programmes",
    "import": "regulars_cli.imports.command",
    "reconcile": "regulars_cli.reconcile",
    "bus": "regulars_cli.bus.command",
    "reporting": "regulars_cli.reporting",
    "doctor": "regulars_cli.doctor.command",
    "backup": "regulars_cli.backup.command",
    "restore": "regulars_cli.restore",
    "restore-facts": "regulars_cli.restore_facts",
    "definitions": "regulars_cli.definitions",
}

# As a shell names the end by SIGPIPE.
CLOSED_PIPE = 141


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser with every subcommand, or with the one named alone."""
    parser = argparse.ArgumentParser(prog="regulars", description="Run and tend a Regulars installation.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        if only in (None, name):
            import_module(module).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    called = given[0] if given and given[0] in COMMANDS else None
    parsed = build_parser(called).parse_args(given)
    try:
        code: int = parsed.func(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has what it wanted, as `head` does. What is left to write goes nowhere, without another complaint at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
