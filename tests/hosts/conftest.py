"""Fixtures of the tests on booted hosts.  Every test in this folder has the marker `hosts`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import cannot_run
from hosts import first, rootfs
from hosts.host import Host
from hosts.world import World, ending_orderly

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them all."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("hosts")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`older_release` is for tests of what hardly depends on the release: with --full it is each in turn."""
    if "older_release" in metafunc.fixturenames:
        some = rootfs.RELEASES if metafunc.config.getoption("--full") else rootfs.RELEASES[:1]
        metafunc.parametrize("older_release", some, scope="module")


@pytest.fixture(scope="session", autouse=True)
def orderly_end() -> Iterator[None]:
    """SIGTERM ends the run with the fixtures' clean-up."""
    with ending_orderly():
        yield


@pytest.fixture(scope="session")
def first_instruction() -> None:
    """For tests whose programs send with their first instructions."""
    if not first.can():
        cannot_run("the program of these tests is for x86_64")


@pytest.fixture(scope="session")
def root_file_systems() -> None:
    """Build what is missing, all releases at once."""
    rootfs.build_all()


@pytest.fixture(scope="module")
def world(root_file_systems: None) -> Iterator[World]:
    """A world for the tests of one module, empty at first."""
    with World() as made:
        yield made


@pytest.fixture(scope="module", params=rootfs.RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Each release of Debian in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def full(request: pytest.FixtureRequest) -> None:
    """For tests that say more of what others show already: with --full only."""
    if not request.config.getoption("--full"):
        pytest.skip("with --full only")


@pytest.fixture
def some_host(world: World, release: str) -> Host:
    """A host of that release; it may be used up by whoever takes it."""
    return world.boot(f"h{len(world.hosts)}", release)
