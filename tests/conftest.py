"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no timing", deadline=None)  # how fast a test runs is the machine's
settings.load_profile("no timing")
