#!/bin/sh
# Writes protos/released.binpb, the image that `make check` holds every later change of a .proto against.
# Run it as a part of a release, never to silence the check: clients in the field speak what was released.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/buf build protos -o protos/released.binpb
