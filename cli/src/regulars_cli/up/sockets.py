"""Folders for Unix sockets, whose paths the system keeps short."""

import os
import tempfile
from pathlib import Path

# The least of the limits of the systems we run on (Linux 108, macOS 104), less what servers add to a name for their locks.
_PATH_BYTES = 96


def socket_folder(preferred: Path, longest_name: str) -> Path:
    """`preferred`, or a new private folder in the temporary folder when the path of a socket in it would be too long."""
    if len(os.fsencode(preferred / longest_name)) <= _PATH_BYTES:
        return preferred
    return Path(tempfile.mkdtemp(prefix="regulars-"))
