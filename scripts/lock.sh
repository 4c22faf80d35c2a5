#!/bin/sh
# Writes requirements.lock: the exact version and hashes of everything that the packages, the checks and the tests need, on every platform.
# Usage: scripts/lock.sh [--upgrade | --upgrade-package NAME]. Without an option, versions that still fit are kept.
# scripts/uv.lock.txt is cut from it: with it, set-up gets uv before anything else. So is what each image needs (write_service_locks.py).
set -eu
cd "$(dirname "$0")/.."
uv="${UV:-.venv/bin/uv}"
packages="protos kit services/member services/gateway services/reporting[embedded] cli[local]"
names="regulars-protos regulars-kit regulars-member regulars-gateway regulars-reporting regulars"

# Our own packages are inputs, found beside one another, and never looked for in a registry.
inputs=$(mktemp)
trap 'rm -f "$inputs"' EXIT
for package in $packages; do echo "-e ./$package"; done >"$inputs"
own=""
for name in $names; do own="$own --no-emit-package $name"; done

# shellcheck disable=SC2086 # one word for each option and name
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate $own \
  --group dev -o requirements.lock "$@" - <"$inputs"
if grep -nE '://|file:|^-e |^--' requirements.lock; then
  echo "requirements.lock names a host or a path in the lines above; it must not." >&2
  exit 1
fi
{
  echo "# The uv that set-up starts from, cut from requirements.lock by scripts/lock.sh."
  sed -n '/^uv==/,/^[^ ]/p' requirements.lock | sed '1b;/^[^ ]/d'
} >scripts/uv.lock.txt
{
  echo "# Every dependency of every package, with hashes: written by \`make lock\` from the pyproject.toml files. Do not edit."
  cat requirements.lock
} >requirements.lock.new
mv requirements.lock.new requirements.lock
.venv/bin/python scripts/write_service_locks.py --uv "$uv"
