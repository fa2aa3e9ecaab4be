"""Options, the marker for tests that need root, and the lab that tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import NoReturn

import pytest

from penstock.demo.lab import Lab

NEEDED = ("ip", "nft")
COUNT_DIVISOR = 10
"""Without --full, tests use a tenth of the large counts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full and --hosts."""
    parser.addoption("--full", action="store_true", help="the large counts as written, not a tenth")
    parser.addoption("--hosts", action="store_true", help="only the tests on booted hosts; there are none yet")


def why_not_root() -> str:
    """Why tests that need root cannot run here; empty when they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in NEEDED if shutil.which(program) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def in_ci() -> bool:
    """Whether a test that cannot run is a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def cannot_run(reason: str) -> NoReturn:
    """Skip on a laptop; in CI a test that cannot run is a failure."""
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_root() -> None:
    """For tests that need root, and programs that only root can use."""
    if reason := why_not_root():
        cannot_run(reason)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what is not there."""
    if config.getoption("--hosts"):
        raise pytest.UsageError("there are no tests on booted hosts yet")


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
