"""A partner's own database, as Dovetail reaches it and as the partner fills it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.postgres import Server


@dataclass(frozen=True)
class Shop:
    """A user's place in a PostgreSQL server; the user's tables stand in a schema of that name."""

    server: Server
    user: str

    @property
    def url(self) -> str:
        """What libpq understands."""
        return f"postgresql://{self.user}@/postgres?host={self.server.socket.parent}"

    def run(self, *statements: str) -> list[tuple[object, ...]]:
        return self.server.run(*statements, url=self.server.url(self.user))
