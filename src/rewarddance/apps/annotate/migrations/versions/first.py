"""The first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer, primary_key=True)


def _to(name: str, table: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, sa.ForeignKey(f"{table}.id"), nullable=False)


def _required(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def upgrade() -> None:
    """Create all tables."""
    _content()
    _people()
    _work()


def _content() -> None:
    settings, source = _required("settings", sa.JSON()), _required("source", sa.JSON())
    op.create_table("desk", _id(), settings, source, _required("created", sa.Double()))
    op.create_table(
        "picture",
        _id(),
        _required("sha256", sa.String(64)),
        _required("content", sa.LargeBinary()),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "record",
        _id(),
        _required("name", sa.Text()),
        _required("prompt", sa.Text()),
        _required("media", sa.JSON()),
        _required("facts", sa.JSON()),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "item",
        _id(),
        _to("record_id", "record"),
        _required("members", sa.JSON()),
        _required("pictures", sa.JSON()),
        sa.Column("noise", sa.Integer),
    )
    op.create_index("ix_item_record_id", "item", ["record_id"])


def _people() -> None:
    op.create_table(
        "person",
        _id(),
        _required("role", sa.String(16)),
        _required("name", sa.Text()),
        _required("code", sa.String(32)),
        _required("created", sa.Double()),
        sa.Column("excluded", sa.Double),
        sa.Column("reason", sa.Text),
        sa.UniqueConstraint("code"),
    )
    op.create_table(
        "invitation",
        _id(),
        _to("person_id", "person"),
        _required("token_hash", sa.String(64)),
        _required("created", sa.Double()),
        _required("expires", sa.Double()),
        sa.UniqueConstraint("token_hash"),
    )
    op.create_index("ix_invitation_person_id", "invitation", ["person_id"])
    op.create_table(
        "login",
        _id(),
        _to("person_id", "person"),
        _required("token_hash", sa.String(64)),
        _required("csrf", sa.String(64)),
        _required("created", sa.Double()),
        _required("seen", sa.Double()),
        sa.UniqueConstraint("token_hash"),
    )
    op.create_index("ix_login_person_id", "login", ["person_id"])


def _work() -> None:
    op.create_table(
        "assignment",
        _id(),
        _required("token", sa.String(32)),
        _to("item_id", "item"),
        _to("person_id", "person"),
        _required("again", sa.Integer()),
        _required("shown_order", sa.JSON()),
        _required("created", sa.Double()),
        _required("lease_until", sa.Double()),
        _required("done", sa.Boolean()),
        sa.UniqueConstraint("token"),
        sa.UniqueConstraint("item_id", "person_id", "again"),
    )
    op.create_index("ix_assignment_item_id", "assignment", ["item_id"])
    op.create_index("ix_assignment_open", "assignment", ["person_id", "done"])
    op.create_table(
        "shown",
        sa.Column("token", sa.String(32), primary_key=True),
        _to("assignment_id", "assignment"),
        _required("place", sa.Integer()),
        _to("picture_id", "picture"),
    )
    op.create_index("ix_shown_assignment_id", "shown", ["assignment_id"])
    op.create_table(
        "judgement",
        _id(),
        _to("assignment_id", "assignment"),
        _to("person_id", "person"),
        _required("key", sa.String(64)),
        _required("answers", sa.JSON()),
        _required("seconds", sa.Double()),
        _required("created", sa.Double()),
        sa.Column("withdrawn", sa.Double),
        sa.UniqueConstraint("person_id", "key"),
    )
    op.create_index("ix_judgement_assignment_id", "judgement", ["assignment_id"])
    standing = sa.text("withdrawn IS NULL")
    op.create_index(
        "ix_judgement_standing",
        "judgement",
        ["assignment_id"],
        unique=True,
        sqlite_where=standing,
        postgresql_where=standing,
    )


def downgrade() -> None:
    """Drop all tables."""
    for name in (
        "judgement",
        "shown",
        "assignment",
        "login",
        "invitation",
        "person",
        "item",
        "record",
        "picture",
        "desk",
    ):
        op.drop_table(name)
