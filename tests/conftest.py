"""Options, the marker for tests that need root, and the lab that tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from penstock.demo.lab import Lab

NEEDED = ("ip", "nft")
COUNT_DIVISOR = 10
"""Without --full, tests use a tenth of the large counts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full and --hosts."""
    parser.addoption("--full", action="store_true", help="the large counts as written, not a tenth")
    parser.addoption("--hosts", action="store_true", help="also boot real hosts")


def why_not_root() -> str:
    """Why tests that need root cannot run here; empty when they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in NEEDED if shutil.which(program) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def in_ci() -> bool:
    """Whether a test that cannot run is a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def require_root() -> None:
    """Skip, or in CI fail, where tests that need root cannot run."""
    if reason := why_not_root():
        if in_ci():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what was not asked for."""
    for item in items:
        if item.get_closest_marker("full") and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="only with --full"))
        if item.get_closest_marker("hosts") and not config.getoption("--hosts"):
            item.add_marker(pytest.mark.skip(reason="only with --hosts"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `root` skip where they cannot run, and fail there in CI."""
    if item.get_closest_marker("root"):
        require_root()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """What to divide large counts by: 1 with --full, else 10."""
    return 1 if request.config.getoption("--full") else COUNT_DIVISOR


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab with the usual two remote hosts, for the tests of one module.  They clean up after themselves."""
    require_root()
    with Lab() as made:
        yield made
