#!/bin/bash
# Run once by the official image's entrypoint, when the server is made: a database for each service, of a user that owns that one alone.
set -euo pipefail

for service in member gateway; do
  # The password goes neither through a command line nor into the log.
  psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set service=$service <<'SQL'
\set file '/run/keys/' :service '.password'
\set password `cat :file`
CREATE ROLE :"service" LOGIN PASSWORD :'password';
CREATE DATABASE :"service" OWNER :"service" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"service" FROM PUBLIC;
SQL
done

# Whoever takes backups may replicate, and look, and nothing else.
psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 <<'SQL'
\set password `cat /run/keys/backup.password`
CREATE ROLE backup LOGIN REPLICATION PASSWORD :'password' IN ROLE pg_monitor;
SQL
echo 'host replication backup all scram-sha-256' >>"$PGDATA/pg_hba.conf"
