#!/bin/bash
# Starts ClickHouse with the password out of its file, for its entrypoint knows it from the environment only.
set -euo pipefail

CLICKHOUSE_PASSWORD=$(cat /run/keys/clickhouse.password)
export CLICKHOUSE_PASSWORD
if [ -x /entrypoint.sh ]; then exec /entrypoint.sh; fi
# Where the official image cannot be had, tests put the same engine behind the same interface in its place.
exec python /usr/local/bin/clickhouse-http.py
