#!/bin/sh
# Every drill, against systems of their own in a new folder; each prints what it measured. The exit code is 1 if one of them failed.
set -u
cd "$(dirname "$0")/../.."
python=.venv/bin/python
folder=$(mktemp -d)
chmod 711 "$folder"
port=${PORT:-8690}
failed=""

drill() {
  echo "== $*"
  "$@" || failed="$failed; $*"
}

# `regulars up` in the background, for drills that need one that runs.
begin() {
  .venv/bin/regulars up --var "$folder/$1" --port "$port" --kafka "$2" >"$folder/$1.log" 2>&1 &
  up=$!
  while ! grep -q '^curl' "$folder/$1.log"; do
    if ! kill -0 "$up" 2>/dev/null; then cat "$folder/$1.log" && exit 1; fi
    sleep 0.2
  done
}

end() {
  kill -INT "$up" && wait "$up"
}

begin plain ""
for what in pods postgres clickhouse; do
  drill $python scripts/drills/outage.py $what --var "$folder/plain" --seconds 15
done
end
begin kafka local
drill $python scripts/drills/outage.py kafka --var "$folder/kafka" --seconds 15
end
drill $python scripts/drills/restore.py
drill $python scripts/drills/restore.py --mistake
drill $python scripts/drills/restore.py --kafka
rm -rf "$folder"

if [ -n "$failed" ]; then
  echo "Drills that failed: ${failed#; }"
  exit 1
fi
