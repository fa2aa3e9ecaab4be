"""What systemd, root and users do to the cgroups of workloads: `status` tells, and the rules hold all the same.

Each test has a workload of its own, which it stops at its end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from typing import Any

import pytest

from hosts.installed import ALLOWED, DENIED, Installed, boot
from hosts.outside import STRANGER
from hosts.world import World
from pace import slow

pytestmark = pytest.mark.usefixtures("first_instruction")

FEW: dict[str, Any] = {"doors": [], "every": 4}
SLACK = 6
"""Seconds after which a start is known to be later than the drop-in: more than the agent leaves for it."""


@pytest.fixture(scope="module")
def installed(world: World) -> Installed:
    """One host for all."""
    return boot(world, "inference", "bookworm")


@pytest.fixture
def stopped(installed: Installed) -> Iterator[list[str]]:
    """Units to be stopped at the end; their workloads are taken out of the policy again."""
    units: list[str] = []
    yield units
    stops = [f"systemctl stop '{unit}'" for unit in units]
    installed.sh("; ".join(["rm -f /etc/penstock/rules.d/*", *stops]))
    installed.host.run(["penstock", "apply"])


def governed(installed: Installed, stopped: list[str], name: str, *, dropin: bool, service: str = "") -> str:
    """A unit that hammers, is governed, and runs."""
    unit = f"{name}.service"
    installed.hammer(unit, service=service, **FEW)
    stopped.append(unit)
    installed.enforce(name, unit, dropin=dropin)
    installed.sh(f"systemctl start {unit}")
    how = "slice" if dropin else "in-place"
    installed.wait_for(lambda: installed.enforcing(name) and installed.workload(name)["enrolment"] == how)
    return unit


def test_a_slice_that_systemd_ignores(installed: Installed, stopped: list[str]) -> None:
    """A process that is left over keeps the unit's old cgroup, and then systemd does not use the new slice."""
    unit = "leftover.service"
    installed.hammer(unit, service="KillMode=process\nExecStartPre=/bin/sh -c 'setsid /bin/sleep 1000 &'", **FEW)
    stopped.append(unit)
    installed.enforce("leftover", unit, dropin=False)
    installed.sh(f"systemctl start {unit}")
    installed.wait_for(lambda: installed.findings("in-place", "leftover"))
    installed.sh(f"penstock protect {unit}; penstock apply")
    armed = f"/etc/systemd/system/{unit}.d/50-penstock.conf"
    later = f'[ $(($(date +%s) - $(stat -c %Z {armed}))) -gt {SLACK} ]'
    (found,) = installed.findings("in-place", "leftover")
    assert found["remedy"] == f"its slice is ready: systemctl restart {unit}"
    installed.host.wait_until(["sh", "-c", later], every=0.3)
    installed.sh(f"systemctl restart {unit}")
    assert installed.running(unit)[1] == f"/system.slice/{unit}", "systemd did ignore it"
    (found,) = installed.wait_for(lambda: installed.findings("slice-ignored", "leftover"))
    assert found["severity"] == "error"
    assert f"system.slice/{unit}" in found["text"]
    installed.wait_for(lambda: installed.enforcing("leftover"))
    assert installed.workload("leftover")["enrolment"] == "in-place"
    with installed.nothing_gets_out(unit):
        pass
    # And what the remedy says is a remedy.
    installed.sh(f"systemctl stop {unit}; systemctl kill --kill-who=all {unit} || true")
    installed.host.wait_until(lambda: not installed.host.exists(f"/sys/fs/cgroup/system.slice/{unit}"))
    installed.sh(f"systemctl start {unit}")
    installed.wait_for(lambda: installed.workload("leftover")["enrolment"] == "slice")
    assert installed.findings("slice-ignored") == []


@pytest.mark.parametrize("dropin", [True, False], ids=["slice", "in-place"])
def test_a_process_that_root_moves_elsewhere(installed: Installed, stopped: list[str], dropin: bool) -> None:
    name = "moved" if dropin else "taken"
    unit = governed(installed, stopped, name, dropin=dropin)
    pid, home, _ = installed.running(unit)
    move = "mkdir -p /sys/fs/cgroup/elsewhere; echo {} >/sys/fs/cgroup{}/cgroup.procs"
    installed.sh(move.format(pid, "/elsewhere"))
    start = time.monotonic()
    found = installed.wait_for(lambda: installed.findings("outside", name))
    took = time.monotonic() - start
    print(f"\nseen outside after {took:.1f} s")
    assert took < slow(3)
    assert f"process {pid} " in found[0]["text"]
    assert "/elsewhere" in found[0]["text"]
    said = installed.workload(name)
    assert (said["outside"], said["egress"]) != (0, "enforcing")
    assert said["egress"] != "enforcing"
    installed.sh(move.format(pid, home))
    installed.wait_for(lambda: not installed.findings("outside") and installed.enforcing(name))


def test_cgroups_that_a_user_makes_below_a_unit(installed: Installed, stopped: list[str]) -> None:
    """With Delegate= a service may make cgroups of its own and go there: they belong to the workload as well."""
    go = 'c=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); mkdir $c/own; echo $$ >$c/own/cgroup.procs'
    installed.host.write("/opt/go-below", f"#!/bin/sh -e\n{go}\nexec /opt/below\n", 0o755)
    installed.sh("install -d -o www-data /srv/hammer-below")
    installed.hammer("below.service", file="/srv/hammer-below/count", **FEW)
    unit = "below.service"
    installed.unit(unit, "/opt/go-below", service="User=www-data\nDelegate=yes")
    stopped.append(unit)
    installed.enforce("below", unit)
    installed.sh(f"systemctl start {unit}")
    installed.wait_for(lambda: installed.enforcing("below") and installed.workload("below")["processes"] == 1)
    pid, home, _ = installed.running(unit)
    installed.host.wait_until(lambda: installed.host.read(f"/proc/{pid}/cgroup").strip().endswith(f"{home}/own"))
    with installed.nothing_gets_out("/srv/hammer-below/count"):
        pass
    said = installed.workload("below")
    assert (said["enrolment"], said["egress"], said["outside"]) == ("slice", "enforcing", 0)
    assert [one["unit"] for one in said["units"]] == [unit]


def test_a_look_alike(installed: Installed, stopped: list[str]) -> None:
    """A server that nobody governs is told of, whatever its unit is called; and not once it is governed."""
    installed.unit("something.service", "@/bin/sleep llama-server 1000", service="User=nobody")
    stopped.append("something.service")
    installed.sh("systemctl start something.service")
    # The host is looked over at the first look of a daemon, and then twice a minute.
    installed.sh("systemctl restart penstock.service; systemctl kill --signal=HUP penstock.service")
    found = installed.wait_for(lambda: installed.findings("look-alike"), timeout=40)
    assert "looks like llama-server, and no workload governs it" in found[0]["text"]
    assert "/system.slice/something.service" in found[0]["text"]
    installed.enforce("something", "something.service")
    installed.sh("systemctl restart penstock.service; systemctl kill --signal=HUP penstock.service")
    installed.wait_for(lambda: installed.enforcing("something") and installed.workload("something")["processes"])
    installed.wait_for(lambda: not installed.findings("look-alike"))


def test_instances_of_a_template(installed: Installed, stopped: list[str]) -> None:
    """They run a level deeper, in a slice that systemd makes for the template, until they have ours."""
    installed.hammer("unused.service")
    shots = [[astuple(shot) for shot in some] for some in (DENIED, ALLOWED)]
    wanted = json.dumps({"often": shots[0], "seldom": shots[1], **FEW}).replace(" ", "")
    installed.unit("vllm@.service", f"/usr/bin/python3 -S -E /opt/hammer.py /srv/hammer/vllm-%i '{wanted}'")
    stopped += ["vllm@a.service", "vllm@b.service"]
    installed.enforce("vllm", "vllm@*.service", dropin=False)
    installed.sh("systemctl start vllm@a.service vllm@b.service")
    units = installed.wait_for(
        lambda: installed.enforcing("vllm") and len(found := installed.workload("vllm")["units"]) == 2 and found
    )
    assert isinstance(units, list)
    assert [(one["cgroup"], one["how"], one["processes"]) for one in units] == [
        (f"system.slice/system-vllm.slice/vllm@{name}.service", "in-place", 1) for name in "ab"
    ]
    with installed.nothing_gets_out("vllm-a"), installed.nothing_gets_out("vllm-b"):
        pass
    installed.host.run(["penstock", "protect", "vllm@.service"])
    installed.host.run(["penstock", "apply"])
    installed.sh("systemctl restart vllm@a.service vllm@b.service")
    installed.wait_for(lambda: installed.workload("vllm")["enrolment"] == "slice")
    with installed.nothing_gets_out("vllm-a"), installed.nothing_gets_out("vllm-b"):
        pass
    assert installed.running("vllm@a.service")[1] == "/penstock.slice/penstock-vllm.slice/vllm@a.service"


DELETE = "nft delete element inet penstock"
FLUSHES = {
    "everything": "nft flush ruleset",
    "the table": "nft delete table inet penstock",
    "the workload": f"{DELETE} out_cgroups '{{ \"penstock.slice/penstock-flushed.slice\" }}'",
    "the slice of all": "nft flush chain inet penstock output",
}


def repaired(installed: Installed, told: int) -> bool:
    """Whether one more alarm is told of, and all is well."""
    return len(installed.findings("foreign-change")) > told and installed.enforcing("flushed")


def test_what_others_take_away_is_put_back(
    installed: Installed, stopped: list[str], record_property: Callable[[str, object], None]
) -> None:
    """Under a hammer of four packets a millisecond: how long the door was open, and how many got through."""
    unit = governed(installed, stopped, "flushed", dropin=True)
    outside = installed.world.outside
    for what, command in FLUSHES.items():
        with installed.nothing_gets_out(unit):
            pass
        told = len(installed.findings("foreign-change"))
        mark, start = outside.mark(), time.monotonic()
        installed.sh(command)
        installed.wait_for(partial(repaired, installed, told))
        with installed.nothing_gets_out(unit):
            pass
        left = [p for p in outside.seen(installed.host.name, since=mark) if p.destination in STRANGER]
        gap = max((p.time for p in left), default=start) - min((p.time for p in left), default=start)
        print(f"\n{what}: {len(left)} packets got out in {1000 * gap:.0f} ms")
        record_property(what, {"packets": len(left), "seconds": gap})
        said = installed.sh("journalctl -q -b -u penstock.service -o short-monotonic -n 6")
        assert gap < slow(1), f"{[round(p.time - start, 3) for p in left]}\n{said}"
        assert max((p.time for p in left), default=start) - start < slow(1)
        assert "(by 'nft', pid " in installed.findings("foreign-change")[-1]["text"]


SERVER = (
    "/usr/bin/python3 -c 'import socket, time; one = [socket.create_server((host, port)) for host, port in "
    '((str(), 8000), ("127.0.0.1", 8001))]; time.sleep(9999)\''
)
SERVING = """\
version: 1
workload: {name}
mode: enforce
match: {{unit: {unit}}}
egress: []
ingress: [{{from: host, ports: [8001]}}]
"""


@pytest.mark.parametrize("dropin", [True, False], ids=["slice", "in-place"])
def test_what_listens_and_who_reaches_it(installed: Installed, stopped: list[str], dropin: bool) -> None:
    """With no more rights than the unit of the daemon has."""
    name = "serving" if dropin else "placed"
    unit = f"{name}.service"
    installed.unit(unit, SERVER, service="User=nobody")
    stopped.append(unit)
    installed.enforce(name, unit, dropin=dropin, text=SERVING)
    installed.sh(f"systemctl start {unit}")

    def open_ports(count: int) -> bool:
        return len(installed.workload(name)["listening"]) == count

    installed.wait_for(lambda: open_ports(2))
    forgotten, ours = installed.workload(name)["listening"]
    assert {key: forgotten[key] for key in ("protocol", "address", "port", "process")} == {
        "protocol": "tcp",
        "address": "0.0.0.0",
        "port": 8000,
        "process": "python3",
    }
    assert (forgotten["reached_by"], forgotten["rules"]) == ([], [])
    assert (ours["address"], ours["reached_by"], len(ours["rules"])) == ("127.0.0.1", ["host"], 1)
    (told,) = installed.findings("listens-without-rule", name)
    assert "port 8000," in told["text"]
    assert f"{name} 0.0.0.0:8000 (python3) <- no rule" in installed.sh(f"penstock status {name}; true")
    installed.sh(f"systemctl stop {unit}")
    installed.wait_for(lambda: open_ports(0))
