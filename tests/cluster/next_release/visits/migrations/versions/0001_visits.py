"""Its one table."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes it."""
    op.execute("CREATE TABLE visits (visit_id uuid PRIMARY KEY, began_at timestamptz NOT NULL)")
