"""The coordinator's tables as they are now; how they came to be stands in ``migrations``."""

from __future__ import annotations

import sqlalchemy as sa

from dovetail.errors import LocalProtocolError


class Words(sa.types.TypeDecorator[str]):
    """Text that every database can keep: Unicode without NUL."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(
        self,
        value: str | None,
        dialect: sa.Dialect,  # noqa: ARG002 - SQLAlchemy's signature
    ) -> str | None:
        """The text as it is.

        Raises:
            LocalProtocolError: it cannot be kept. A driver that found out by itself, halfway
                through a message, would leave its connection unusable.
        """
        if value is not None and ("\0" in value or not _encodes(value)):
            raise LocalProtocolError("text with NUL or half a character cannot be kept")
        return value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


METADATA = sa.MetaData()
_NUMBER = sa.BigInteger().with_variant(
    sa.Integer, "sqlite"
)  # SQLite numbers only INTEGER by itself

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("number", _NUMBER, primary_key=True),
    sa.Column("job", Words, nullable=False, unique=True),
    sa.Column("request", Words, nullable=False),
    sa.Column("request_digest", Words, nullable=False),
    sa.Column("terms_digest", Words, nullable=False),
    sa.Column("asked_by", Words, nullable=False),
    sa.Column("signature", Words, nullable=False),
    sa.Column("quorum", sa.Integer, nullable=False),
    sa.Column("deadline", sa.Double, nullable=False),
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("state", Words, nullable=False),
    sa.Column("round_asked", sa.Integer, nullable=False),
    sa.Column("rounds_done", sa.Integer, nullable=False),
    sa.Column("lost_rounds", sa.Integer, nullable=False),
    sa.Column("checkpoint_round", sa.Integer, nullable=False),
    sa.Column("checkpoint", Words, nullable=False),
    sa.Column("reason", Words, nullable=False),
    sa.Column("owner", Words, nullable=False),
    sa.Column("created", Words, nullable=False),
    sa.Column("updated", Words, nullable=False),
    sqlite_autoincrement=True,
)
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("sequence", _NUMBER, primary_key=True),
    sa.Column("time", Words, nullable=False),
    sa.Column("job", Words, sa.ForeignKey("jobs.job"), nullable=False),
    sa.Column("kind", Words, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("partner", Words, nullable=False),
    sa.Column("text", Words, nullable=False),
    sa.Index("events_of_job", "job", "sequence"),
    sqlite_autoincrement=True,
)
PERMITS = sa.Table(
    "permits",
    METADATA,
    sa.Column("job", Words, sa.ForeignKey("jobs.job"), primary_key=True),
    sa.Column("partner", Words, primary_key=True),
    sa.Column("record", Words, nullable=False),
    sa.Column("signature", Words, nullable=False),
    sa.Column("time", Words, nullable=False),
    sa.Column("settled", sa.Boolean, nullable=False),
)
AGREEMENTS = sa.Table(
    "agreements",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("signed", Words, nullable=False),
    sa.Column("time", Words, nullable=False),
)
RELEASES = sa.Table(
    "releases",
    METADATA,
    sa.Column("job", Words, sa.ForeignKey("jobs.job"), primary_key=True),
    sa.Column("record", Words, nullable=False),
    sa.Column("folder", Words, nullable=False),
    sa.Column("time", Words, nullable=False),
)
