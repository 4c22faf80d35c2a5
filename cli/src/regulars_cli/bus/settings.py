"""Which bus: that of the environment, as the services read it, else the running installation's."""

import argparse
import json
import os
from pathlib import Path

from kit.bus.connecting import BusSettings
from kit.settings import load
from regulars_cli.access import VAR


class BusUnknown(Exception):
    """Neither given nor found; the sentence says what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--var`, where the installation is whose bus is meant."""
    parser.add_argument(
        "--var",
        metavar="DIR",
        type=Path,
        default=VAR,
        help="the installation whose bus is meant, unless BUS_URL is set (default: %(default)s)",
    )


def find_bus(var: Path) -> BusSettings:
    """The settings of the bus.

    Raises:
        BusUnknown: there is none.
        SettingsInvalid: the environment's are not usable.
    """
    if os.environ.get("BUS_URL"):
        return load(BusSettings)
    try:
        noted = json.loads((var / "up.json").read_bytes())["bus"]
        return load(BusSettings, {str(name): str(value) for name, value in noted.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BusUnknown(f"{var / 'up.json'} names no bus: start the system with `make up`, or set BUS_URL.") from None
