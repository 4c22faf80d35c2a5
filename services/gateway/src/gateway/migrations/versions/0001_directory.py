"""Stores, tills, API clients, the audit log, the gateway's own operations, and the proof of their fingerprint key."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables, and the triggers that tell every gateway of a change."""
    op.execute("""
        CREATE TABLE stores (
            store_id             uuid PRIMARY KEY,
            code                 text NOT NULL CONSTRAINT stores_code UNIQUE,
            name                 text NOT NULL,
            zone                 text NOT NULL,
            currency             text NOT NULL CONSTRAINT stores_currency_form CHECK (currency ~ '^[A-Z]{3}$'),
            programme_id         text NOT NULL,
            day_cut_over_minutes smallint NOT NULL CONSTRAINT stores_day_cut_over_in_day CHECK (day_cut_over_minutes BETWEEN 0 AND 1439),
            created_at           timestamptz NOT NULL
        )
    """)
    op.execute("""
        CREATE TABLE tills (
            till_id    uuid PRIMARY KEY,
            store_id   uuid NOT NULL REFERENCES stores,
            code       text NOT NULL,
            name       text NOT NULL,
            created_at timestamptz NOT NULL,
            CONSTRAINT tills_code UNIQUE (store_id, code)
        )
    """)
    op.execute("""
        CREATE TABLE api_clients (
            client_id  uuid PRIMARY KEY,
            name       text NOT NULL,
            key_sha256 bytea NOT NULL CONSTRAINT api_clients_key UNIQUE,
            role       text NOT NULL CONSTRAINT api_clients_role_known CHECK (role IN ('till', 'admin')),
            store_ids  uuid[],
            created_at timestamptz NOT NULL,
            revoked_at timestamptz,
            CONSTRAINT api_clients_key_is_a_hash CHECK (octet_length(key_sha256) = 32)
        )
    """)
    op.execute("""
        CREATE TABLE audit_log (
            entry_id     uuid PRIMARY KEY,
            at           timestamptz NOT NULL,
            client_id    uuid NOT NULL,
            method       text NOT NULL,
            path         text NOT NULL,
            operation_id text NOT NULL,
            request_id   text NOT NULL
        )
    """)
    op.execute("""
        CREATE TABLE operations (
            operation_id text PRIMARY KEY,
            fingerprint  bytea NOT NULL,
            method       text NOT NULL,
            path         text NOT NULL,
            status       smallint NOT NULL,
            body         bytea NOT NULL,
            decided_at   timestamptz NOT NULL
        )
    """)
    op.execute("""
        CREATE TABLE directory_state (
            one_row boolean PRIMARY KEY CONSTRAINT directory_state_one_row CHECK (one_row),
            version bigint NOT NULL
        )
    """)
    op.execute("CREATE TABLE key_checks (name text PRIMARY KEY, proof bytea NOT NULL)")
    op.execute("INSERT INTO directory_state VALUES (true, 1)")
    op.execute("""
        CREATE FUNCTION directory_changed() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE directory_state SET version = version + 1;
            RETURN NULL;
        END $$
    """)
    for table in ("stores", "tills", "api_clients"):
        op.execute(f"""
            CREATE TRIGGER {table}_changed AFTER INSERT OR UPDATE OR DELETE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION directory_changed()
        """)
