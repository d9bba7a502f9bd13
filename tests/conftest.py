"""Settings of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# No deadline: machines differ in speed. The same examples every time: a failure can be repeated.
settings.register_profile("adanat", deadline=None, derandomize=True)
settings.load_profile("adanat")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what is the same to the last bit, or counted, where torch has one thread, whatever the machine gives it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
