"""The log of messages, the groups that read it, and how far they are."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Rows written at every publish, commit or heartbeat: room on the page keeps their updates off the indexes, and what is dead goes soon.
_HOT = "WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)"


def upgrade() -> None:
    """Creates everything the PostgreSQL bus has."""
    op.execute("""
        CREATE TABLE topics (
            name       text PRIMARY KEY,
            partitions integer NOT NULL CHECK (partitions > 0),
            retention  interval NOT NULL
        )
    """)
    # The row is locked from the moment its offsets are drawn until the publisher's commit: offsets become visible in their order.
    op.execute(f"""
        CREATE TABLE partitions (
            id           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            topic        text NOT NULL REFERENCES topics (name),
            partition    integer NOT NULL,
            first_offset bigint NOT NULL DEFAULT 0,
            next_offset  bigint NOT NULL DEFAULT 0,
            UNIQUE (topic, partition)
        ) {_HOT}
    """)
    # What one call published to a partition is one row (a long call's several): a thousand messages cost a few rows to write, to read
    # and to delete. It is JSON, which is encoded and decoded faster than rows or arrays, and an operator can read; compressing it
    # would cost more than it saves. Offsets leave no gap between rows. How many messages a row may hold bounds where the one that
    # holds an offset can begin.
    op.execute("""
        CREATE TABLE batches (
            partition_id integer NOT NULL REFERENCES partitions (id),
            first_offset bigint NOT NULL,
            next_offset  bigint NOT NULL CHECK (next_offset - first_offset BETWEEN 1 AND 512),
            published_at timestamptz NOT NULL,
            messages     text STORAGE EXTERNAL NOT NULL,
            PRIMARY KEY (partition_id, first_offset)
        )
    """)
    op.execute("""
        CREATE VIEW messages AS
        SELECT p.topic, p.partition, b.first_offset + m.number - 1 AS "offset", m.fields ->> 0 AS event_id, m.fields ->> 1 AS key,
            m.fields ->> 2 AS type, decode(m.fields ->> 3, 'base64') AS payload, m.fields ->> 4 AS traceparent,
            (m.fields ->> 5)::timestamptz AS recorded_at, b.published_at
        FROM partitions AS p
        JOIN batches AS b ON b.partition_id = p.id
        CROSS JOIN LATERAL jsonb_array_elements(b.messages::jsonb) WITH ORDINALITY AS m (fields, number)
    """)
    op.execute("CREATE TABLE groups (name text PRIMARY KEY)")
    op.execute(f"""
        CREATE TABLE members (
            id          uuid PRIMARY KEY,
            group_name  text NOT NULL REFERENCES groups (name),
            client_name text NOT NULL,
            topics      text[] NOT NULL,
            joined_at   timestamptz NOT NULL,
            seen_at     timestamptz NOT NULL
        ) {_HOT}
    """)
    # Whose a partition is counts by `generation`, which every taking raises: an owner of before cannot commit.
    op.execute(f"""
        CREATE TABLE readings (
            group_name   text NOT NULL REFERENCES groups (name),
            partition_id integer NOT NULL REFERENCES partitions (id),
            member_id    uuid REFERENCES members (id) ON DELETE SET NULL,
            generation   bigint NOT NULL DEFAULT 0,
            committed    bigint,
            PRIMARY KEY (group_name, partition_id)
        ) {_HOT}
    """)
