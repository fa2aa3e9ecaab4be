"""Lent access on a booted host: over boots, after sleep without a daemon, and whose login it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from hosts.installed import TCP, UDP, Installed, boot
from hosts.outside import STRANGER
from hosts.world import World
from penstock.core.slices import slice_of

NAME = "borrower"
RULES = "version: 1\nworkload: borrower\nmode: enforce\negress: []\ningress: []\n"
HOOK = ["/usr/lib/systemd/system-sleep/penstock", "post", "suspend"]
LOGIN = "echo 1234 > /proc/self/loginuid; exec "
"""What a login does; sudo and su pass it on."""


@pytest.fixture(scope="module")
def lender(world: World) -> Installed:
    made = boot(world, "inference", "bookworm")
    made.host.write(f"/etc/penstock/rules.d/{NAME}.yaml", RULES)
    made.host.run(["penstock", "apply"])
    made.sh("echo anna:x:1234:1234::/:/bin/sh >> /etc/passwd")
    return made


@pytest.fixture
def clean(lender: Installed) -> Iterator[Installed]:
    yield lender
    for one in listed(lender):
        lender.host.run(["penstock", "revoke", one["id"]])


def grant(lender: Installed, lasting: str) -> list[dict[str, Any]]:
    """To the stranger, in both families."""
    found = []
    for address in STRANGER:
        far = f"[{address}]" if ":" in address else address
        argv = ["penstock", "grant", NAME, f"{far}:{TCP},{UDP}/udp", "--for", lasting, "--reason", "to see"]
        found.append(json.loads(lender.host.run([*argv, "--json"]).stdout)["grant"])
    return found


def listed(lender: Installed) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lender.host.run(["penstock", "grants", "--json"]).stdout)["grants"]
    return found


def reaches(lender: Installed) -> set[bool]:
    """Whether the workload does, by each family and protocol."""
    home, host = slice_of(NAME), lender.host
    tcp = {host.tcp(address, TCP, 1, home).outcome == "ok" for address in STRANGER}
    return tcp | {host.udp(address, UDP, 1, home).outcome == "ok" for address in STRANGER}


def past(lender: Installed, id: str) -> list[str]:
    lines = lender.host.run(["penstock", "grants", "--past", "--json"]).stdout.splitlines()
    return [one["event"] for one in map(json.loads, lines) if one["id"] == id]


def test_a_boot_leaves_what_is_left_by_the_clock(clean: Installed) -> None:
    lender = clean
    assert reaches(lender) == {False}
    made = grant(lender, "10m")
    assert reaches(lender) == {True}
    floor = lender.host.read("/var/lib/penstock/floor.nft")
    assert not any(address in floor for address in STRANGER)
    lender.host.reboot()
    lender.wait_for(lambda: lender.enforcing(NAME), 30)
    assert listed(lender) == made
    assert reaches(lender) == {True}
    for one in made:
        lender.host.run(["penstock", "revoke", one["id"].removeprefix("grant-")[:6]])
    assert reaches(lender) == {False}


def test_what_ends_while_the_host_is_off_is_over(clean: Installed) -> None:
    lender = clean
    made = grant(lender, "4s")
    end = datetime.fromisoformat(made[-1]["until"]).timestamp()
    lender.host.power_off()
    time.sleep(max(0.0, end - time.time()))
    lender.host.power_on()
    lender.wait_for(lambda: lender.enforcing(NAME), 30)
    assert listed(lender) == []
    assert reaches(lender) == {False}
    assert past(lender, made[0]["id"]) == ["made", "ended"]


def test_woken_without_a_daemon_all_that_is_lent_is_closed(clean: Installed) -> None:
    """The kernel's timeouts stood still, and nobody can tell for how long: the floor has none of it."""
    lender = clean
    made = grant(lender, "10m")
    lender.sh("systemctl stop penstock.service")
    try:
        assert reaches(lender) == {True}
        lender.host.run(HOOK)
        assert reaches(lender) == {False}
    finally:
        lender.sh("systemctl start penstock.service")
    lender.wait_for(lambda: lender.enforcing(NAME), 30)
    assert listed(lender) == made
    assert reaches(lender) == {True}


def test_whose_login_it_is_not_what_sudo_says(clean: Installed) -> None:
    lender, command = clean, f"penstock grant {NAME} 192.0.2.77:1 --for 1m --reason x --json"
    for number, (before, owner) in enumerate(
        ((LOGIN, "anna"), (LOGIN + "env SUDO_USER=mallory ", "anna (as mallory)"))
    ):
        script = before + command.replace(":1 ", f":{number + 1} ")
        found = json.loads(lender.sh(f"sh -c '{script}'"))["grant"]
        assert found["owner"] == owner
    said = lender.sh("journalctl -u penstock.service -o cat").splitlines()
    (line,) = [line for line in said if "mallory" in line]
    assert " made: borrower, 192.0.2.77:2, until " in line
