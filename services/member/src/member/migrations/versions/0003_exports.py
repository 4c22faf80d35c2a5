"""What a fact said when it was published and its row did not: the wallet's sequence, the instant of recording, the programme."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds columns, empty in the rows that are there, and the type of the rows of sales that this release sends."""
    op.execute("ALTER TABLE members ADD COLUMN programme_id text, ADD COLUMN changed_at timestamptz")
    op.execute("ALTER TABLE sales ADD COLUMN wallet_sequence bigint")
    op.execute("ALTER TABLE reversals ADD COLUMN wallet_sequence bigint")
    op.execute("ALTER TABLE points_entries ADD COLUMN recorded_at timestamptz")
    op.execute("""
        CREATE TYPE new_sale_v2 AS (
            sale_id uuid, member_id uuid, is_guest boolean, programme_id text, operation_id text, store_id uuid, store_code text,
            till_id uuid, receipt_no text, sold_at timestamptz, sold_at_offset_minutes smallint, business_day date, currency text,
            channel text, staff_code text, gross_minor bigint, discount_minor bigint, net_minor bigint, points_spent bigint,
            points_spent_minor bigint, payable_minor bigint, points_earned bigint, earn_points bigint, earn_per_minor bigint,
            earn_rounding text, earned_lot_id uuid, spent_from text, discounts text, tenders text, recorded_at timestamptz,
            wallet_sequence bigint
        )
    """)
