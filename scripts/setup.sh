#!/bin/sh
# Makes .venv from requirements.lock, with our own packages editable; does nothing when nothing changed. Called by make.
# PYTHON names the interpreter; otherwise the first of python3, python3.11 and later that is new enough.
set -eu
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
  if new_enough "$candidate"; then python=$candidate && break; fi
done
if [ -z "$python" ]; then
  say "Python 3.11 or later is needed and none was found (looked for ${PYTHON:-python3, python3.11 and later}); install it, or name it with PYTHON=…"
  exit 1
fi

# What the environment depends on. Its own place is a part: programs in it hold it, so a moved checkout is set up anew.
inputs="requirements.lock scripts/uv.lock.txt scripts/setup.sh protos/pyproject.toml kit/pyproject.toml"
inputs="$inputs services/member/pyproject.toml services/gateway/pyproject.toml services/reporting/pyproject.toml cli/pyproject.toml"
stamp=.venv/.setup
# shellcheck disable=SC2086 # one word for each file
wanted=$( { pwd -P && "$python" -c 'import sys; print(sys.version, sys.base_prefix)' && cat $inputs; } | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

if [ -e .venv ] && ! [ -w .venv ]; then
  say "$(pwd)/.venv belongs to another user, who must run \`make setup\`; or remove it."
  exit 1
fi
free_mb=$(df -Pm . | awk 'NR == 2 { print $4 }')
if ! [ -d .venv ] && [ "$free_mb" -lt 1800 ]; then
  say "The packages need 1,800 MB of disk space and $(pwd) has $free_mb MB left; make room first."
  exit 1
fi

if ! { [ -x .venv/bin/python ] && new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
  say "making .venv with $("$python" --version)"
  rm -rf .venv
  if ! why=$("$python" -m venv .venv 2>&1); then
    rm -rf .venv
    case $why in
      *ensurepip*) say "$python lacks the parts that make environments (ensurepip); on Debian and Ubuntu: apt install python3-venv" ;;
      *) say "$python could not make .venv: $(echo "$why" | tail -n 1)" ;;
    esac
    exit 1
  fi
fi
rm -f "$stamp"

# uv does not read pip's settings, where the machine's registry may be named.
pip_setting() { .venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | tail -n 1; }
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
  index=$(pip_setting index-url)
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
fi
if [ -z "${SSL_CERT_FILE:-}" ]; then
  certificates=$(pip_setting cert)
  if [ -n "$certificates" ]; then export SSL_CERT_FILE="$certificates"; fi
fi

if ! [ -x .venv/bin/uv ] || [ "$(.venv/bin/uv --version | cut -d ' ' -f 2)" != "$(sed -n 's/^uv==\([^ ]*\).*/\1/p' scripts/uv.lock.txt)" ]; then
  say "getting uv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r scripts/uv.lock.txt
fi
say "getting the locked packages"
export UV_PYTHON=.venv/bin/python
.venv/bin/uv pip sync --quiet --require-hashes requirements.lock
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation -e ./protos -e ./kit -e services/member -e services/gateway -e services/reporting -e ./cli
if ! why=$(.venv/bin/uv pip check 2>&1); then
  say "requirements.lock does not fit the packages; run \`make lock\`. $(echo "$why" | tail -n 1)"
  exit 1
fi
echo "$wanted" >"$stamp"
