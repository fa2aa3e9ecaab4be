"""Our table goes, and nobody else's; without the nft language."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from governed import Actor
from penstock.core.ruleset import MARKER
from penstock.demo.lab import Lab
from penstock.kernel import nft_removal
from penstock.kernel.libnftables import Libnftables

pytestmark = pytest.mark.root


def run(script: str) -> str:
    library = Libnftables()
    try:
        return library.run(script)
    finally:
        library.close()


@pytest.fixture
def agent(lab: Lab) -> Iterator[Actor]:
    with Actor(lab.host) as actor:
        actor(run, "flush ruleset\n")
        yield actor


def test_it_is_found_by_its_marker(agent: Actor) -> None:
    assert not agent(nft_removal.is_there)
    agent(run, "add table inet penstock\n")
    assert not agent(nft_removal.is_there)
    agent(run, f"add counter inet penstock {MARKER}\n")
    assert agent(nft_removal.is_there)


def test_it_goes_with_everything_in_it(agent: Actor) -> None:
    rules = """
        add table ip other
        add table inet penstock
        add chain inet penstock c { type filter hook output priority 0 ; }
        add chain inet penstock d
        add map inet penstock m { type cgroupsv2 : verdict ; }
        add rule inet penstock c socket cgroupv2 level 1 vmap @m
        add rule inet penstock c goto d
        """
    agent(run, f"{rules}\nadd counter inet penstock {MARKER}\n")
    agent(nft_removal.delete)
    assert agent(run, "list ruleset\n") == "table ip other {\n}\n"
    agent(nft_removal.delete)
