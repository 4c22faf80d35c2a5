#!/bin/sh
# Regenerates protos/gen from protos/regulars. Run it after every change of a .proto or of topics.yaml and commit the result.
# Usage: scripts/generate_protos.sh [DIR]; another DIR than protos/gen is for `make check`, which compares.
set -eu
cd "$(dirname "$0")/.."
bin="$(pwd)/.venv/bin"
out=${1:-protos/gen}
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -rf "$out/regulars"
cd protos
# shellcheck disable=SC2046 # one word for each file; none has a space
"$bin/python" -m grpc_tools.protoc -I . \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out="$out" --mypy_out="$out" --grpc_python_out="$out" --mypy_grpc_out="$out" \
  $(find regulars -name '*.proto' | LC_ALL=C sort)
find "$out" -name '*_events_pb2_grpc.py*' -delete
touch "$out/regulars/py.typed"
# Installed beside the stubs, so that a service finds the topics wherever it is installed.
cp topics.yaml "$out/regulars/topics.yaml"
