"""The daemon of one test, in the lab of its module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemon.running import Running
from penstock.demo.lab import Lab


@pytest.fixture
def running(lab: Lab) -> Iterator[Running]:
    """Its surroundings; nothing is started yet."""
    with Running(lab) as made:
        yield made
