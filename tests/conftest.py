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
def threads() -> Iterator[None]:
    """For tests that set the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """For what is the same to the last bit, or counted, where torch has one thread, whatever the machine gives it."""
    torch.set_num_threads(1)
