#!/bin/sh
# Every check that needs no running system, each run whatever the others say; the exit code is 1 if one of them found something.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=""

check() {
  name=$1 && shift
  if ! said=$("$@" 2>&1); then
    printf '%s\n%s: failed\n' "$said" "$name"
    failed="$failed, $name"
  else
    echo "$name: ok"
  fi
}

stubs_are_current() {
  fresh=$(mktemp -d)
  scripts/generate_protos.sh "$fresh" && diff -r -x __pycache__ protos/gen "$fresh" ||
    { echo "protos/gen is not what the .proto files give: run \`make protos\` and commit."; false; }
  result=$?
  rm -rf "$fresh"
  return $result
}

check "ruff" $bin/ruff check --quiet .
check "ruff format" $bin/ruff format --check --quiet .
check "mypy" $bin/mypy .
check "import-linter" $bin/lint-imports
check "lint_ast" $bin/python scripts/lint_ast.py
check "buf lint" $bin/buf lint protos
check "buf breaking" $bin/buf breaking protos --against protos/released.binpb
check "stubs" stubs_are_current
check "service locks" $bin/python scripts/write_service_locks.py --check
check "docs/topics.md" $bin/python scripts/write_topics_page.py --check
check "docs/signals.md" $bin/python scripts/write_signals_page.py --check
check "chart, what is written into it" $bin/python scripts/write_chart_values.py --check
check "chart, README" $bin/python scripts/write_chart_readme.py --check
check "chart" $bin/python scripts/check_chart.py

if [ -n "$failed" ]; then
  echo "make check: failed: ${failed#, }"
  exit 1
fi
