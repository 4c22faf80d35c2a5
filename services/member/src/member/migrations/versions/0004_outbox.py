"""The outbox stays small: every row of it dies within a second."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Has autovacuum clean the outbox away by the number of dead rows, whatever its size was, and without pausing."""
    op.execute("""
        ALTER TABLE outbox SET (
            autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0
        )
    """)
