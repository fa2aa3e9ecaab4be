"""Sockets that answer look-ups: seen from every mount namespace from which a process can reach them."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

from governed import Actor, slice_of
from penstock.demo import namespaces
from penstock.demo.lab import Lab
from penstock.kernel import name_bypass
from penstock.kernel.name_bypass import AVAHI, BUS, NSCD, RESOLVED

HOME = slice_of("w")
CAP_NET_ADMIN = 12
DEVICE = "0:25"

PLAIN = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
25 22 0:25 / /run rw - tmpfs tmpfs rw
26 25 0:30 / /run/lock rw - tmpfs tmpfs rw
"""
COVERED = PLAIN + "40 25 0:25 /systemd/inaccessible/dir /run/dbus ro - tmpfs tmpfs rw\n"
HIDDEN_ABOVE = PLAIN + "41 25 0:40 / /run rw - tmpfs tmpfs rw\n"
UNDER = COVERED + "42 25 0:40 / /run rw - tmpfs tmpfs rw\n43 42 0:25 / /run rw - tmpfs tmpfs rw\n"
ELSEWHERE = "50 49 254:0 /opt/model / rw - ext4 /dev/vda rw\n51 50 0:30 / /run rw - tmpfs tmpfs rw\n"
BOUND = ELSEWHERE + "52 50 0:25 /dbus /opt/b\\040us ro - tmpfs tmpfs rw\n"
BOUND_FILE = ELSEWHERE + "53 51 0:25 /dbus/system_bus_socket /run/bus ro - tmpfs tmpfs rw\n"
CHROOT = "60 22 0:25 / /run rw - tmpfs tmpfs rw\n"
STACKED = "70 1 254:0 / / rw - ext4 x rw\n71 70 254:1 / / rw - ext4 y rw\n72 70 0:25 / /run rw - tmpfs tmpfs rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "sees"),
    [
        (PLAIN, True),
        (COVERED, False),
        (HIDDEN_ABOVE, False),  # a mount over the one that has it
        (UNDER, True),  # and the same again over that
        (ELSEWHERE, False),
        (BOUND, True),  # under another name
        (BOUND_FILE, True),
        (CHROOT, True),  # whose own root is no mount
        (STACKED, False),  # below a root that covers it
        ("", False),
        ("nonsense\n1 2\nx y 0:25 / / rw - t t rw\n\n", False),
    ],
)
def test_seen(mountinfo: str, sees: bool) -> None:
    mounts = name_bypass.parse(mountinfo)
    assert name_bypass.sees(mounts, DEVICE, PurePosixPath("/dbus/system_bus_socket")) == sees


# --- real ones, in the /run of a lab ---


@contextmanager
def listening(lab: Lab, *paths: str) -> Iterator[None]:
    """Sockets at these places of the lab, held by somebody."""
    with Actor(lab.host) as owner:
        owner(listen, paths)
        try:
            yield
        finally:
            owner(remove, paths)


def listen(paths: tuple[str, ...]) -> None:
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        socket.socket(socket.AF_UNIX).bind(path)


def remove(paths: tuple[str, ...]) -> None:
    for path in paths:
        os.unlink(path)


def exposed(lab: Lab, *actors: Actor) -> dict[str, int]:
    """As the daemon finds it: root, with CAP_NET_ADMIN alone; actors by their number."""

    def look() -> dict[str, int]:
        header = struct.pack("=Ii", 0x20080522, 0)
        sets = struct.pack("=6I", 1 << CAP_NET_ADMIN, 1 << CAP_NET_ADMIN, 0, 0, 0, 0)
        assert ctypes.CDLL(None).capset(header, sets) == 0
        return dict(name_bypass.exposed(pids))

    pids = [actor(os.getpid) for actor in actors]
    return {path: pids.index(pid) for path, pid in lab.host.call(look).items()}


@contextmanager
def actor(lab: Lab, change: Callable[[], object] | None = None) -> Iterator[Actor]:
    with Actor(lab.host, HOME) as made:
        if change is not None:
            made(change)
        yield made


def hide_directories() -> None:
    own_mounts()
    for path in (BUS, NSCD, AVAHI, RESOLVED):
        directory = os.path.dirname(path)
        if os.path.isdir(directory):
            namespaces.mount("tmpfs", directory, "tmpfs")


def own_mounts() -> None:
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.mount("none", "/", "none", namespaces.MS_REC | namespaces.MS_PRIVATE)


def only_the_bus_elsewhere() -> None:
    own_mounts()
    os.makedirs("/tmp/bus", exist_ok=True)
    namespaces.mount("/run/dbus", "/tmp/bus", "none", namespaces.MS_BIND)
    namespaces.mount("tmpfs", "/run", "tmpfs")


def chroot() -> None:
    own_mounts()
    os.chroot("/usr")


def nobody() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


@pytest.mark.root
def test_on_a_host_where_nobody_answers_there_is_none(lab: Lab) -> None:
    with actor(lab) as one:
        assert exposed(lab, one) == {}
        with listening(lab, BUS):  # others are on it, and nobody who looks names up
            assert exposed(lab, one) == {}
    with actor(lab) as one:
        lab.host.call(os.makedirs, os.path.dirname(NSCD), exist_ok=True)
        lab.host.call(Path(NSCD).write_text, "")
        assert exposed(lab, one) == {}
        lab.host.call(os.unlink, NSCD)


@pytest.mark.root
@pytest.mark.parametrize("paths", [(RESOLVED,), (NSCD,), (AVAHI,), (RESOLVED, BUS), (AVAHI, BUS)])
def test_each_is_seen_unless_it_is_hidden(lab: Lab, paths: tuple[str, ...]) -> None:
    with listening(lab, *paths), actor(lab, hide_directories) as careful, actor(lab, nobody) as one:
        assert exposed(lab, careful) == {}
        assert exposed(lab, careful, one) == dict.fromkeys(paths, 1)


@pytest.mark.root
def test_under_another_name_it_is_seen_and_in_a_chroot_not(lab: Lab) -> None:
    with (
        listening(lab, RESOLVED, BUS),
        actor(lab, only_the_bus_elsewhere) as one,
        actor(lab, chroot) as other,
    ):
        assert exposed(lab, other) == {}
        assert exposed(lab, other, one) == {BUS: 1}


@pytest.mark.root
def test_a_socket_that_was_made_anew_is_hidden_no_more(lab: Lab) -> None:
    """Which is why directories are hidden, and not sockets."""
    with listening(lab, RESOLVED), actor(lab, own_mounts) as one:
        one(namespaces.mount, "/dev/null", RESOLVED, "none", namespaces.MS_BIND)
        assert exposed(lab, one) == {}
        lab.host.call(remove, (RESOLVED,))
        lab.host.call(listen, (RESOLVED,))
        assert exposed(lab, one) == {RESOLVED: 0}


@pytest.mark.root
def test_processes_that_are_gone_say_nothing(lab: Lab) -> None:
    with listening(lab, RESOLVED):
        assert lab.host.call(lambda: list(name_bypass.exposed([2**22 - 1]))) == []
