"""Member files and programmes."""

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
            phone          bytea,
            phone_index    bytea,
            phone_verified boolean NOT NULL,
            card           bytea,
            card_index     bytea,
            birthday       bytea,
            gender         text,
            city           text,
            country        text,
            joined_on      date NOT NULL,
            created_at     timestamptz NOT NULL,
            CONSTRAINT members_status_known CHECK (status IN ('live', 'erased')),
            CONSTRAINT members_live_has_key CHECK ((data_key IS NOT NULL) = (status = 'live')),
            CONSTRAINT members_phone_indexed CHECK ((phone IS NULL) = (phone_index IS NULL)),
            CONSTRAINT members_card_indexed CHECK ((card IS NULL) = (card_index IS NULL)),
            CONSTRAINT members_verified_has_phone CHECK (phone IS NOT NULL OR NOT phone_verified)
        )
    """)
    op.execute("CREATE UNIQUE INDEX members_one_per_verified_phone ON members (phone_index) WHERE phone_verified AND status = 'live'")
    op.execute("CREATE UNIQUE INDEX members_one_per_card ON members (card_index) WHERE status = 'live'")
    op.execute("CREATE INDEX members_by_phone ON members (phone_index, member_id) WHERE status = 'live' AND phone_index IS NOT NULL")
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


def downgrade() -> None:
    """Not offered: a release is undone by a newer one, never by losing data."""
    raise NotImplementedError
