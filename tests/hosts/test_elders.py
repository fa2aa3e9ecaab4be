"""Connections that were there before the agent: a download that is under way when a workload is first governed."""

from __future__ import annotations

import contextlib
import sys

import pytest

from hosts.installed import TCP, Installed
from hosts.outside import REGISTRY, STRANGER
from hosts.world import World

UNIT, NAME = "download.service", "download"

STREAM = """
import socket, sys, threading, time
def pour(peer):
    try:
        while True:
            peer.sendall(b"x" * 500)
            time.sleep(0.003)
    except OSError:
        pass
def serve(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family)
    while True:
        threading.Thread(target=pour, args=listener.accept()[:1], daemon=True).start()
for address in sys.argv[2:]:
    threading.Thread(target=serve, args=(address, int(sys.argv[1]))).start()
"""
DOWNLOAD = """
import os, socket, sys, threading
def load(address, port):
    with socket.create_connection((address, port)) as peer:
        got = 0
        while data := peer.recv(1 << 16):
            got += len(data)
            with open("/srv/" + address + ".new", "w") as file:
                file.write(str(got))
            os.replace("/srv/" + address + ".new", "/srv/" + address)
for address in sys.argv[2:]:
    threading.Thread(target=load, args=(address, int(sys.argv[1]))).start()
"""


@pytest.fixture(scope="module")
def downloading(world: World) -> Installed:
    """Downloads, allowed ones and others, that began before there was an agent and go on when it governs them."""
    script = world.directory / "stream.py"
    script.write_text(STREAM)
    world.lab.host.popen([sys.executable, str(script), str(TCP), *REGISTRY, *STRANGER])
    made = Installed(world, world.boot("inference"))
    made.host.write("/opt/download.py", DOWNLOAD)
    made.unit(UNIT, f"/usr/bin/python3 /opt/download.py {TCP} {' '.join([*REGISTRY, *STRANGER])}")
    made.host.wait_until(lambda: made.host.tcp(STRANGER[1], TCP).outcome == "ok")
    made.sh(f"systemctl start {UNIT}")
    made.host.wait_until(lambda: all(made.host.exists(f"/srv/{address}") for address in (*REGISTRY, *STRANGER)))
    made.install()
    made.enforce(NAME, UNIT, dropin=False)
    made.wait_for(lambda: made.enforcing(NAME))
    return made


def got(downloading: Installed, address: str) -> int:
    """Bytes so far."""
    return int(downloading.host.read(f"/srv/{address}"))


@pytest.mark.parametrize("address", STRANGER)
def test_what_is_not_allowed_ends(downloading: Installed, address: str) -> None:
    before = got(downloading, address)
    with pytest.raises(AssertionError):
        downloading.host.wait_until(lambda: got(downloading, address) > before + 5000, timeout=1)


def test_what_streams_to_us_goes_on_or_may_begin_anew(downloading: Installed) -> None:
    """The kernel takes a connection that it meets in its midst by the sender of the first packet it sees: when
    that is the server, it counts as the caller, and no ingress rule allows that.  The manual says so.
    """
    before = {address: got(downloading, address) for address in REGISTRY}

    def goes_on(more: int = 50_000) -> bool:
        return any(got(downloading, address) > number + more for address, number in before.items())

    with contextlib.suppress(AssertionError):
        downloading.host.wait_until(goes_on, timeout=1)
    downloading.sh(f"systemctl stop {UNIT}; rm /srv/*; systemctl start {UNIT}")
    for address in REGISTRY:
        downloading.host.wait_until(["test", "-e", f"/srv/{address}"])
        before = {address: 0}
        downloading.host.wait_until(goes_on)
