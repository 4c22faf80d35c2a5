"""Member files, the proof of their index key, and programmes."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the tables of the slices `members` and `programmes`."""
    op.execute("""
        CREATE TABLE members (
            member_id      uuid PRIMARY KEY,
            status         text NOT NULL,
            kek_id         text,
            data_key       bytea,
            name           bytea,
            name_index     bytea,
            phone          bytea,
            phone_index    bytea,
            phone_verified boolean NOT NULL,
            card           bytea,
            card_index     bytea,
            birthday       bytea,
            birthday_index bytea,
            gender         text,
            city           text,
            country        text,
            joined_on      date NOT NULL,
            created_at     timestamptz NOT NULL,
            CONSTRAINT members_status_known CHECK (status IN ('live', 'erased')),
            CONSTRAINT members_live_has_key CHECK ((data_key IS NOT NULL) = (status = 'live')),
            CONSTRAINT members_name_indexed CHECK ((name IS NULL) = (name_index IS NULL)),
            CONSTRAINT members_phone_indexed CHECK ((phone IS NULL) = (phone_index IS NULL)),
            CONSTRAINT members_card_indexed CHECK ((card IS NULL) = (card_index IS NULL)),
            CONSTRAINT members_birthday_indexed CHECK ((birthday IS NULL) = (birthday_index IS NULL)),
            CONSTRAINT members_erased_is_not_indexed CHECK (
                status = 'live' OR num_nonnulls(name_index, phone_index, card_index, birthday_index) = 0
            ),
            CONSTRAINT members_verified_has_phone CHECK (phone IS NOT NULL OR NOT phone_verified)
        )
    """)
    op.execute("CREATE UNIQUE INDEX members_one_per_verified_phone ON members (phone_index) WHERE phone_verified AND status = 'live'")
    op.execute("CREATE UNIQUE INDEX members_one_per_card ON members (card_index) WHERE status = 'live'")
    for name in ("phone", "name", "birthday"):
        index = f"{name}_index"
        op.execute(f"CREATE INDEX members_by_{name} ON members ({index}, member_id) WHERE status = 'live' AND {index} IS NOT NULL")
    op.execute("CREATE INDEX members_by_kek ON members (kek_id) WHERE kek_id IS NOT NULL")
    op.execute("CREATE TABLE key_checks (name text PRIMARY KEY, proof bytea NOT NULL)")
    op.execute("""
        CREATE TABLE programme_versions (
            seq            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            programme_id   text NOT NULL,
            version        integer NOT NULL,
            effective_from date NOT NULL,
            definition     jsonb NOT NULL,
            applied_at     timestamptz NOT NULL,
            applied_by     text NOT NULL,
            CONSTRAINT programme_versions_version UNIQUE (programme_id, version)
        )
    """)
