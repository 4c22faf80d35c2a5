"""The wallet, sales and reversals, the log of answers, and the outbox."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Partitioned by month of recording: ids are UUIDv7, so a range of ids is a range of time. `member.partitions` makes the months; the
# default partition catches what a wrong clock might date outside them.
_PARTITIONED = ("points_entries", "sales", "sale_lines", "reversals", "unlinked_returns")

# What the writer sends of each table, as arrays of rows (`member.wallet.writing`). They are types of their own, not the tables' row
# types, so that a column can be added while the release before still writes; a release that sends more makes a new type.
_NEW_ROWS = """
CREATE TYPE new_lot AS (
    member_id uuid, programme_id text, lot_id uuid, quantity bigint, remaining bigint, expired bigint, matured boolean,
    available_at timestamptz, expires_at timestamptz, source_kind text, source_id uuid
);
CREATE TYPE new_entry AS (
    member_id uuid, programme_id text, sequence bigint, entry_id uuid, at timestamptz, kind text, points bigint, pending bigint,
    debt bigint, expired bigint, balance bigint, debt_after bigint, lot_id uuid, sale_id uuid, cause_id uuid, reason text,
    expires_at timestamptz
);
CREATE TYPE new_wallet_figures AS (
    member_id uuid, programme_id text, balance bigint, pending bigint, debt bigint, sequence bigint, expiries text, maturities text
);
CREATE TYPE new_sale AS (
    sale_id uuid, member_id uuid, is_guest boolean, programme_id text, operation_id text, store_id uuid, store_code text, till_id uuid,
    receipt_no text, sold_at timestamptz, sold_at_offset_minutes smallint, business_day date, currency text, channel text,
    staff_code text, gross_minor bigint, discount_minor bigint, net_minor bigint, points_spent bigint, points_spent_minor bigint,
    payable_minor bigint, points_earned bigint, earn_points bigint, earn_per_minor bigint, earn_rounding text, earned_lot_id uuid,
    spent_from text, discounts text, tenders text, recorded_at timestamptz
);
CREATE TYPE new_sale_line AS (
    sale_id uuid, line_no integer, member_id uuid, sku text, description text, category text, quantity text, unit_price text,
    amount_minor bigint, discount_minor bigint, net_minor bigint, points_spent bigint, points_spent_minor bigint, points_earned bigint,
    multiplier_bp bigint, rule text, discounts text, serials text
);
CREATE TYPE new_event AS (
    event_id uuid, topic text, key uuid, type text, payload bytea, traceparent text, recorded_at timestamptz
);
CREATE TYPE new_answer AS (
    operation_id text, fingerprint bytea, method text, path text, status smallint, body bytea, sealed boolean, subject_id uuid,
    member_id uuid, decided_at timestamptz
);
"""


def upgrade() -> None:
    """Creates the tables of the slices `answers`, `points` and `sales`, and the outbox."""
    op.execute("""
        CREATE TABLE operations (
            operation_id text PRIMARY KEY,
            fingerprint  bytea NOT NULL,
            method       text NOT NULL,
            path         text NOT NULL,
            status       smallint NOT NULL,
            body         bytea NOT NULL,
            sealed       boolean NOT NULL,
            subject_id   uuid,
            member_id    uuid,
            decided_at   timestamptz NOT NULL
        )
    """)
    # Room on the page for the next version of a row: a wallet changes with every sale and none of its columns but the key is indexed.
    op.execute("""
        CREATE TABLE wallets (
            member_id    uuid NOT NULL,
            programme_id text NOT NULL,
            balance      bigint NOT NULL,
            pending      bigint NOT NULL,
            debt         bigint NOT NULL,
            sequence     bigint NOT NULL,
            expiries     jsonb NOT NULL,
            maturities   jsonb NOT NULL,
            updated_at   timestamptz NOT NULL,
            PRIMARY KEY (member_id, programme_id),
            CONSTRAINT wallets_never_overdrawn CHECK (balance >= 0 AND pending >= 0 AND debt >= 0),
            CONSTRAINT wallets_debt_is_paid_first CHECK (debt = 0 OR balance = 0)
        ) WITH (fillfactor = 70)
    """)
    op.execute("""
        CREATE TABLE points_lots (
            member_id    uuid NOT NULL,
            programme_id text NOT NULL,
            lot_id       uuid NOT NULL,
            quantity     bigint NOT NULL,
            remaining    bigint NOT NULL,
            expired      bigint NOT NULL,
            matured      boolean NOT NULL,
            available_at timestamptz NOT NULL,
            expires_at   timestamptz,
            source_kind  text NOT NULL,
            source_id    uuid NOT NULL,
            PRIMARY KEY (member_id, programme_id, lot_id),
            CONSTRAINT points_lots_within_quantity CHECK (remaining >= 0 AND expired >= 0 AND remaining + expired <= quantity)
        )
    """)
    op.execute("""
        CREATE INDEX points_lots_open ON points_lots (member_id, programme_id, expires_at, available_at, lot_id) WHERE remaining > 0
    """)
    op.execute("""
        CREATE TABLE points_entries (
            member_id    uuid NOT NULL,
            programme_id text NOT NULL,
            sequence     bigint NOT NULL,
            entry_id     uuid NOT NULL,
            at           timestamptz NOT NULL,
            kind         text NOT NULL,
            points       bigint NOT NULL,
            pending      bigint NOT NULL,
            debt         bigint NOT NULL,
            expired      bigint NOT NULL,
            balance      bigint NOT NULL,
            debt_after   bigint NOT NULL,
            lot_id       uuid,
            sale_id      uuid,
            cause_id     uuid,
            reason       text,
            expires_at   timestamptz,
            PRIMARY KEY (member_id, programme_id, sequence, entry_id)
        ) PARTITION BY RANGE (entry_id)
    """)
    op.execute("""
        CREATE TABLE sales (
            sale_id                uuid NOT NULL,
            member_id              uuid NOT NULL,
            is_guest               boolean NOT NULL,
            programme_id           text NOT NULL,
            operation_id           text NOT NULL,
            store_id               uuid NOT NULL,
            store_code             text NOT NULL,
            till_id                uuid NOT NULL,
            receipt_no             text NOT NULL,
            sold_at                timestamptz NOT NULL,
            sold_at_offset_minutes smallint NOT NULL,
            business_day           date NOT NULL,
            currency               text NOT NULL,
            channel                text NOT NULL,
            staff_code             text NOT NULL,
            gross_minor            bigint NOT NULL,
            discount_minor         bigint NOT NULL,
            net_minor              bigint NOT NULL,
            points_spent           bigint NOT NULL,
            points_spent_minor     bigint NOT NULL,
            payable_minor          bigint NOT NULL,
            points_earned          bigint NOT NULL,
            earn_points            bigint NOT NULL,
            earn_per_minor         bigint NOT NULL,
            earn_rounding          text NOT NULL,
            earned_lot_id          uuid,
            spent_from             jsonb NOT NULL,
            discounts              jsonb NOT NULL,
            tenders                jsonb NOT NULL,
            recorded_at            timestamptz NOT NULL,
            PRIMARY KEY (sale_id, member_id),
            CONSTRAINT sales_add_up CHECK (gross_minor - discount_minor = net_minor AND net_minor - points_spent_minor = payable_minor)
        ) PARTITION BY RANGE (sale_id)
    """)
    op.execute("CREATE INDEX sales_of_member ON sales (member_id, sold_at DESC, sale_id DESC) WHERE NOT is_guest")
    op.execute("""
        CREATE TABLE sale_lines (
            sale_id            uuid NOT NULL,
            line_no            integer NOT NULL,
            member_id          uuid NOT NULL,
            sku                text NOT NULL,
            description        text NOT NULL,
            category           text NOT NULL,
            quantity           numeric NOT NULL,
            unit_price         numeric NOT NULL,
            amount_minor       bigint NOT NULL,
            discount_minor     bigint NOT NULL,
            net_minor          bigint NOT NULL,
            points_spent       bigint NOT NULL,
            points_spent_minor bigint NOT NULL,
            points_earned      bigint NOT NULL,
            multiplier_bp      bigint NOT NULL,
            rule               text NOT NULL,
            discounts          jsonb,
            serials            jsonb,
            PRIMARY KEY (sale_id, line_no, member_id),
            CONSTRAINT sale_lines_add_up CHECK (amount_minor - discount_minor = net_minor)
        ) PARTITION BY RANGE (sale_id)
    """)
    op.execute("""
        CREATE TABLE reversals (
            reversal_id                uuid NOT NULL,
            member_id                  uuid NOT NULL,
            sale_id                    uuid NOT NULL,
            operation_id               text NOT NULL,
            store_id                   uuid NOT NULL,
            till_id                    uuid NOT NULL,
            reversed_at                timestamptz NOT NULL,
            reversed_at_offset_minutes smallint NOT NULL,
            business_day               date NOT NULL,
            reason                     text NOT NULL,
            lines                      jsonb NOT NULL,
            net_minor                  bigint NOT NULL,
            refund_minor               bigint NOT NULL,
            points_taken_back          bigint NOT NULL,
            points_returned            bigint NOT NULL,
            returned_to                jsonb NOT NULL,
            refunds                    jsonb NOT NULL,
            recorded_at                timestamptz NOT NULL,
            PRIMARY KEY (reversal_id, member_id)
        ) PARTITION BY RANGE (reversal_id)
    """)
    op.execute("CREATE INDEX reversals_of_sale ON reversals (sale_id)")
    op.execute("""
        CREATE TABLE unlinked_returns (
            return_id                  uuid NOT NULL,
            member_id                  uuid NOT NULL,
            is_guest                   boolean NOT NULL,
            operation_id               text NOT NULL,
            store_id                   uuid NOT NULL,
            till_id                    uuid NOT NULL,
            receipt_no                 text NOT NULL,
            returned_at                timestamptz NOT NULL,
            returned_at_offset_minutes smallint NOT NULL,
            business_day               date NOT NULL,
            currency                   text NOT NULL,
            reason                     text NOT NULL,
            lines                      jsonb NOT NULL,
            refund_minor               bigint NOT NULL,
            recorded_at                timestamptz NOT NULL,
            PRIMARY KEY (return_id, member_id)
        ) PARTITION BY RANGE (return_id)
    """)
    for table in _PARTITIONED:
        op.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    op.execute("""
        CREATE TABLE outbox (
            position    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            event_id    uuid NOT NULL,
            topic       text NOT NULL,
            key         uuid NOT NULL,
            type        text NOT NULL,
            payload     bytea NOT NULL,
            traceparent text NOT NULL,
            recorded_at timestamptz NOT NULL
        )
    """)
    for statement in _NEW_ROWS.strip().removesuffix(";").split(";"):
        op.execute(statement)
