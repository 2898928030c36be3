"""Jobs, their events, permits and releases; the chain of agreements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "jobs",
        sa.Column("number", number, primary_key=True),
        sa.Column("job", sa.Text, nullable=False, unique=True),
        *(
            sa.Column(name, sa.Text, nullable=False)
            for name in ("request", "request_digest", "terms_digest", "asked_by", "signature")
        ),
        sa.Column("quorum", sa.Integer, nullable=False),
        sa.Column("deadline", sa.Double, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("round_asked", sa.Integer, nullable=False),
        sa.Column("rounds_done", sa.Integer, nullable=False),
        sa.Column("lost_rounds", sa.Integer, nullable=False),
        sa.Column("checkpoint_round", sa.Integer, nullable=False),
        *(
            sa.Column(name, sa.Text, nullable=False)
            for name in ("checkpoint", "reason", "owner", "created", "updated")
        ),
        sa.CheckConstraint("rounds_done + lost_rounds IN (round_asked, round_asked - 1)"),
        sa.CheckConstraint("rounds_done >= 0 AND lost_rounds >= 0"),
        sa.CheckConstraint("checkpoint_round BETWEEN rounds_done AND round_asked"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "events",
        sa.Column("sequence", number, primary_key=True),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.job"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("partner", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_job", "events", ["job", "sequence"])
    op.create_table(
        "permits",
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.job"), primary_key=True),
        sa.Column("partner", sa.Text, primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("signature", sa.Text, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
    )
    op.create_table(
        "agreements",
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("signed", sa.Text, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
    )
    op.create_table(
        "releases",
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.job"), primary_key=True),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
    )
