"""The README's first example, done: its commands in their order, as typed by a new user on a fresh host with a
llama-server.  The second one is in test_gateway.py.
"""

from __future__ import annotations

import itertools
import re
import time

import pytest

from hosts import bundle
from hosts.host import Host
from hosts.llama import HUB, complete, fetch_model, install_llama
from hosts.outside import DNS, STRANGER
from hosts.world import World
from test_documents import FIRST_EXAMPLE, Fence, below, fences

REFUSED = "bash -c 'echo hello"
"""In the one command that is to fail."""
NUMBERS = itertools.count()
SUDO = '#!/bin/sh\nexec "$@"\n'
LOGGED = "timeout 10 sh -c 'until grep -q 5432 /var/log/penstock/blocks.jsonl; do sleep 0.05; done'"


def steps() -> list[str]:
    """The shell commands of that section."""
    found = below("README", FIRST_EXAMPLE)
    return [line for fence in found if fence.kind == "sh" for line in fence.text.splitlines()]


def script() -> str:
    """Each command, what it printed, and its status."""
    text = ""
    for line in steps():
        if line.endswith("penstock blocks"):  # a person takes longer than the log does
            text += f"{LOGGED}; "
        text += f"{line}; echo status $?\n"
    return text


def shown(word: str) -> Fence:
    """The block of output with that word."""
    return next(fence for fence in fences("README") if fence.kind == "" and word in fence.text)


def plain(text: str) -> str:
    """Without times and ids of grants, and without how columns are filled."""
    timeless = re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", re.sub(r"\d{4}-\d\d-\d\d", "yyyy-mm-dd", text))
    return re.sub(r" +", " ", re.sub(r"grant-[0-9a-f]{8}", "grant-id", timeless))


@pytest.fixture
def fresh(world: World, release: str) -> Host:
    """A host with the checkout and a llama-server; the bundle beside it stands for the network that it lacks."""
    host = world.boot(f"new-{release}", release)
    install_llama(host)
    place = bundle.put(host, place="/home/penstock")
    assert host.exists(f"{place}/systemd/install.sh")
    host.write("/usr/local/bin/sudo", SUDO, 0o755)
    return host


def called_out(world: World, host: Host, family: int, asker: Host, address: str) -> bool:
    """Whether a request without a password makes the server send anything to a stranger, or ask for its name."""
    there = STRANGER[family == 6]
    world.outside.names({HUB: [there]})
    mark = world.outside.mark()
    fetch_model(asker, address, f"someone/{host.boots}-{next(NUMBERS)}")
    time.sleep(0.5)  # what is not refused at once is under way by now
    sent = [*world.outside.seen(host.name, to=there, since=mark)]
    sent += [packet for dns in DNS for packet in world.outside.seen(host.name, to=dns, since=mark)]
    return bool(sent)


def test_as_typed(world: World, fresh: Host) -> None:
    client = world.hosts.get("client") or world.boot("client")
    assert complete(client, fresh.v4).status == 200
    assert [called_out(world, fresh, family, client, fresh.address(family)) for family in (4, 6)] == [True, True]
    fresh.write("/root/steps", script())
    done = fresh.run(["bash", "/root/steps"], cwd="/home/penstock", timeout=120)
    failed = [line for line in steps() if REFUSED in line]
    assert len(failed) == 1
    statuses = [int(status) for status in re.findall(r"^status (\d+)$", done.stdout, re.MULTILINE)]
    assert statuses == [int(line in failed) for line in steps()], done
    assert "Connection refused" in done.stderr
    assert plain(shown("          allow until").text) in plain(done.stdout), done.stdout
    assert plain(shown("ALLOWED").text) in plain(done.stdout), done.stdout
    in_force = r"^llama-server +enforce +enforcing +slice"
    assert re.search(in_force, done.stdout, re.MULTILINE), done.stdout
    said_by_protect = fresh.read("/etc/penstock/rules.d/llama-server.yaml")
    assert "match: {unit: llama-server.service}" in said_by_protect
    # What the README's rules say, seen by others: the port is for this host alone, in both families.
    fresh.wait_until(lambda: complete(fresh, "127.0.0.1").status == 200)
    assert complete(fresh, "::1").status == 200
    for address in fresh.addresses:
        assert client.tcp(address, 8080).outcome == "ECONNREFUSED"
    # And the attack, by one who may ask: the server calls nobody, and asks for no name.
    for family, address in ((4, "127.0.0.1"), (6, "::1")):
        assert not called_out(world, fresh, family, fresh, address)
