"""Announcements of the real kernel: who changed what, and which were our own."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable

import pytest

from penstock.core.events import Commit
from penstock.demo.lab import Lab
from penstock.kernel.nft import Nft
from penstock.kernel.nft_monitor import NftMonitor

pytestmark = pytest.mark.root

TABLE = (
    "add table inet penstock\nadd map inet penstock m { type cgroupsv2 : verdict ; }\n"
    "add chain inet penstock c\n"
)
REMOVE = "add table inet penstock\ndelete table inet penstock\n"


def nft(text: str) -> int:
    """Another root; returns its pid."""
    child = subprocess.Popen(["nft", "-f", "-"], stdin=subprocess.PIPE, text=True)
    child.communicate(text)
    assert child.returncode == 0
    return child.pid


def heard(monitor: NftMonitor, count: int) -> tuple[list[Commit], bool]:
    commits: list[Commit] = []
    lost = False
    while len(commits) < count and not lost:
        assert select.select([monitor], [], [], 5)[0], commits
        more, lost = monitor.read()
        commits += more
    return commits, lost


def inside(body: Callable[[Lab], None]) -> Callable[[Lab], None]:
    def test(lab: Lab) -> None:
        lab.host.call(body, lab)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


@inside
def test_what_others_do_to_our_table_is_about_us_and_to_theirs_is_not(lab: Lab) -> None:
    monitor = NftMonitor()
    for text, touched in (
        (TABLE, True),
        ("add rule inet penstock c accept\n", True),
        ("add table ip penstock\ndelete table ip penstock\n", False),
        ("add table inet other\ndelete table inet other\n", False),
        (REMOVE, True),
    ):
        nft(text)
        [commit], lost = heard(monitor, 1)
        assert commit.touched is touched, text
        assert commit.comm == "nft"
        assert commit.pid
        assert not lost
    assert monitor.read() == ([], False)
    monitor.close()


@inside
def test_generations_follow_each_other(lab: Lab) -> None:
    firewall = Nft()
    monitor = NftMonitor()
    before = firewall.generation()
    nft(TABLE)
    nft(REMOVE)
    commits, _ = heard(monitor, 2)
    assert [c.generation for c in commits] == [before + 1, before + 2]
    assert firewall.generation() == before + 2


@inside
def test_binding_through_our_own_port_is_not_about_us(lab: Lab) -> None:
    firewall = Nft()
    firewall.load(TABLE)
    monitor = NftMonitor(firewall.port)
    firewall.bind({"m": {os.stat(lab.cgroup).st_ino: ("goto", "c")}})
    [commit], _ = heard(monitor, 1)
    assert not commit.touched
    firewall.load(REMOVE)


@inside
def test_loads_of_our_own_thread_are_not_about_us(lab: Lab) -> None:
    firewall = Nft()
    watching = NftMonitor()
    firewall.load(TABLE)
    [commit], _ = heard(watching, 1)
    assert commit.touched
    # In the first pid namespace this number is threading.get_native_id(); the lab has one of its own.
    own = NftMonitor(firewall.port, commit.pid)
    firewall.load(REMOVE)
    nft(TABLE + REMOVE)
    [ours, theirs], _ = heard(own, 2)
    assert (ours.touched, theirs.touched) == (False, True)


@inside
def test_a_flood_is_said_to_be_lost(lab: Lab) -> None:
    monitor = NftMonitor()
    monitor._socket.setsockopt(1, 8, 2048)  # SO_RCVBUF
    elements = ", ".join(f"10.0.{n // 256}.{n % 256}" for n in range(4000))
    nft(f"add table inet penstock\nadd set inet penstock s {{ type ipv4_addr ; elements = {{ {elements} }} ; }}\n")
    commits: list[Commit] = []
    lost = False
    while not lost:
        assert select.select([monitor], [], [], 5)[0], commits
        more, lost = monitor.read()
        commits += more
    nft(REMOVE)
