#!/bin/sh
# Regenerates protos/gen from protos/regulars. Run it after every change of a .proto or of topics.yaml and commit the result.
# Usage: scripts/generate_protos.sh [DIR]; another DIR than protos/gen is for `make check`, which compares.
set -eu
cd "$(dirname "$0")/.."
bin="$(pwd)/.venv/bin"
out=${1:-protos/gen}
mkdir -p "$out"
out=$(cd "$out" && pwd)
# Made aside and put in place whole: a fault in a .proto leaves the stubs as they were.
new=$(mktemp -d "$out/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
cd protos
# shellcheck disable=SC2046 # one word for each file; none has a space
"$bin/python" -m grpc_tools.protoc -I . \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out="$new" --mypy_out="$new" --grpc_python_out="$new" --mypy_grpc_out="$new" \
  $(find regulars -name '*.proto' | LC_ALL=C sort)
find "$new" -name '*_events_pb2_grpc.py*' -delete
touch "$new/regulars/py.typed"
# Installed beside the stubs, so that a service finds the topics wherever it is installed.
cp topics.yaml "$new/regulars/topics.yaml"
rm -rf "$out/regulars"
mv "$new/regulars" "$out/regulars"
