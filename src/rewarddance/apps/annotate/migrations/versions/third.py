"""An order of pairs belongs to the server that made it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("desk", sa.Column("order_owner", sa.String(32), nullable=True))
    op.add_column("desk", sa.Column("order_until", sa.Double, nullable=True))
