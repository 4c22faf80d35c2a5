"""Which release this is."""

from functools import cache
from importlib.metadata import version


@cache
def release() -> str:
    """The version, such as `0.1.0`; all packages of a release have the same."""
    return version("regulars-kit")
