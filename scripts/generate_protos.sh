#!/bin/sh
# Regenerates protos/gen from protos/regulars. Run it after every change of a .proto and commit the result.
set -eu
cd "$(dirname "$0")/../protos"
bin="$(cd .. && pwd)/.venv/bin"
rm -rf gen/regulars
mkdir -p gen
"$bin/python" -m grpc_tools.protoc -I . \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out=gen --mypy_out=gen --grpc_python_out=gen --mypy_grpc_out=gen \
  $(find regulars -name '*.proto' | sort)
find gen -name '*_events_pb2_grpc.py*' -delete
touch gen/regulars/py.typed
