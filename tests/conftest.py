"""Options, the marker for tests that need root, and the lab that tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from penstock.demo.lab import Lab

NEEDED = ("ip", "nft")
NEEDED_FOR_HOSTS = ("mmdebstrap", "systemd-nspawn", "dnsmasq", "sysctl", "nsenter", "unshare")
COUNT_DIVISOR = 10
"""Without --full, tests use a tenth of the large counts."""


# Beside what pytest remembers, and not as a directory of its own at the top.
set_hypothesis_home_dir(Path(__file__).parents[1] / ".pytest_cache/hypothesis")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--full and --hosts."""
    parser.addoption("--full", action="store_true", help="the large counts as written, not a tenth")
    parser.addoption("--hosts", action="store_true", help="only the tests on booted hosts")


def why_not_root() -> str:
    """Why tests that need root cannot run here; empty when they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [program for program in NEEDED if shutil.which(program) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def why_no_hosts() -> str:
    """Why no host can be booted here; empty when they can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in NEEDED_FOR_HOSTS if shutil.which(program, path=path) is None]
    return why_not_root() or (f"needs {', '.join(missing)}" if missing else "")


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


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --hosts nothing else is even read."""
    here = Path(__file__).parent
    if config.getoption("--hosts") and collection_path.parent == here and collection_path.name != "hosts":
        return True
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `root` or `hosts` skip where they cannot run, and fail there in CI."""
    if item.get_closest_marker("root"):
        require_root()
    if item.get_closest_marker("hosts") and (reason := why_no_hosts()):
        cannot_run(reason)


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
