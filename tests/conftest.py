"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# No deadline: machines differ in speed. The same examples every time: a failure can be repeated.
settings.register_profile("adanat", deadline=None, derandomize=True)
settings.load_profile("adanat")
