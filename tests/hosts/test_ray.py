"""A real Ray head under the rules that are shipped for it: each port that it opens, known or chosen by the kernel.

With --full only: it is 360 MB from the package index, and takes its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import cannot_run
from hosts import ray
from hosts.host import SCOPE, Host
from hosts.hub import give_addresses
from hosts.installed import Installed, image
from hosts.matrix import Listener, Matrix, Outcome, Source, table
from hosts.outside import STRANGER
from hosts.probe import install_probe
from hosts.ray import CLIENTS, DASHBOARD, STORE
from hosts.world import World

EXAMPLES = Path(__file__).parents[2] / "rules/examples"
CLIENT, ADMIN = ("10.30.4.4", "fd00:30::4"), ("10.20.0.4", "fd00:20::4")
OTHER_RULES = """\
version: 1
workload: other
mode: enforce
match: {unit: other.service}
egress: [{to: any, ports: [any]}]
ingress: []
"""
FILES = {
    "penstock.yaml": (EXAMPLES / "gateway/penstock.yaml").read_text(),
    "rules.d/ray.yaml": (EXAMPLES / "ray.yaml").read_text(),
    "rules.d/other.yaml": OTHER_RULES,
}
OPENED = {DASHBOARD, CLIENTS}
"""To administrators.  8000, for clients, is that of Ray Serve, which does not run here."""


@dataclass
class Head:
    """The host."""

    world: World
    at: Installed

    @property
    def host(self) -> Host:
        """That one."""
        return self.at.host

    def outcomes(self) -> list[Outcome]:
        """Every cell about the ports that it listens on from the first to the last."""
        before = ray.listening(self.host)
        found = self._matrix(before).outcomes()
        stayed = before.keys() & ray.listening(self.host).keys()
        return [one for one in found if one.listener.port in stayed]

    def _matrix(self, ports: dict[int, set[str]]) -> Matrix:
        units = {"ray": ray.UNIT, "other": "other.service"}
        cgroups = {name: self.at.show(unit, "ControlGroup")[0].lstrip("/") for name, unit in units.items()}
        inside = [Source(name, cgroup=cgroup, workload=name) for name, cgroup in cgroups.items()]
        outside = [Source("client", CLIENT), Source("admin", ADMIN), Source("stranger", STRANGER)]
        sources = [*outside, *inside, Source("nobody", cgroup=SCOPE)]
        listeners = [Listener("ray", port) for port in sorted(ports)]
        presets = {"ray.yaml": (EXAMPLES.parent / "presets/ray.yaml").read_text()}
        return Matrix(self.world, self.host, FILES, sources, listeners, ["tcp"], answered=False, presets=presets)


@pytest.fixture(scope="module")
def head(world: World, request: pytest.FixtureRequest) -> Head:
    """Ray and penstock on a host, and nothing applied yet."""
    if not request.config.getoption("--full"):
        pytest.skip("a Ray head, with --full only")
    try:
        packages = ray.packages()
    except RuntimeError as error:
        cannot_run(str(error))
    give_addresses(world, [*CLIENT, *ADMIN])
    host = world.boot("ray", "bookworm", image=image("bookworm"), share={ray.ROOT: packages})
    at = Installed(world, host)
    ray.install_ray(host)
    install_probe(host, "other.service", port=7100)
    return Head(world, at)


def test_open_to_everybody_without_rules(head: Head) -> None:
    ports = ray.listening(head.host)
    print(ports)
    assert ports.keys() >= {DASHBOARD, CLIENTS, STORE}
    assert len([port for port in ports if port >= 32768]) > 3, "ports that the kernel chose"
    reached = answered(head.outcomes())
    for source in ("client", "admin", "stranger", "other", "nobody"):
        assert {DASHBOARD, CLIENTS, STORE} <= {port for _, port in reached[source]}


def test_each_port_is_as_the_evaluator_says(head: Head) -> None:
    """First where it runs, then in its slice after a restart, with other ports."""
    host = head.host
    for path, text in FILES.items():
        host.write(f"/etc/penstock/{path}", text)
    for unit in (ray.UNIT, "other.service"):
        host.run(["penstock", "protect", unit])
    host.run(["penstock", "apply"])
    head.at.wait_for(lambda: head.at.enforcing("ray", "other"))
    assert head.at.workload("ray")["enrolment"] == "in-place"
    as_said(head.outcomes())
    host.run(["systemctl", "restart", ray.UNIT, "other.service"], timeout=120)
    ray.wait_serving(host)
    head.at.wait_for(lambda: head.at.workload("ray")["enrolment"] == "slice")
    as_said(head.outcomes())


def answered(outcomes: list[Outcome]) -> dict[str, set[tuple[str, int]]]:
    """Source -> the (address, port) that it reached."""
    found: dict[str, set[tuple[str, int]]] = {one.source: set() for one in outcomes}
    for one in outcomes:
        if one.reached:
            found[one.source].add((one.cell.address, one.cell.port))
    return found


def as_said(outcomes: list[Outcome]) -> None:
    """Ray itself shows where it listens; of these, each source reaches what the evaluator allows, and no more."""
    print(table(outcomes))
    reached = answered(outcomes)
    there = reached["ray"]
    assert {port for _, port in there} == {one.cell.port for one in outcomes}
    wrong = [
        str(one)
        for one in outcomes
        if one.reached != (one.allowed and (one.cell.address, one.cell.port) in there)
    ]
    assert not wrong, "\n".join(wrong)
    assert {port for _, port in reached["admin"]} == OPENED
    for source in ("client", "stranger", "other", "nobody"):
        assert reached[source] == set(), source
