"""Who reaches which port, cell by cell: what real connections find is what the evaluator says of the rules."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hosts.hub import give_addresses
from hosts.installed import Installed, image
from hosts.matrix import NOBODY, Listener, Matrix, Outcome, Source, table, wrong
from hosts.outside import STRANGER
from hosts.probe import Probe, install_probe
from hosts.world import World

CLIENT, ADMIN = ("10.30.4.4", "fd00:30::4"), ("10.20.0.4", "fd00:20::4")
MODEL, METRICS, LOCAL, DIRECT = 8080, 9090, 7001, 7002
GATEWAY, OTHER, SSH, BYSTANDER = 8443, 7100, 22, 7300

HOST_FILE = """\
version: 1
networks:
  admin: {cidr: [10.20.0.0/24, "fd00:20::/64"], plane: admin}
  clients: {cidr: [10.30.0.0/16, "fd00:30::/56"], plane: inference}
host:
  admin_ports: [22, 22/udp]
"""
MODEL_RULES = f"""\
version: 1
workload: model
mode: enforce
match: {{unit: model.service}}
egress: []
ingress:
  - ports: [{MODEL}, {MODEL}/udp]
    from: workload:gateway
  - ports: [{METRICS}, {METRICS}/udp]
    from: admin
  - ports: [{LOCAL}, {LOCAL}/udp]
    from: host
  - ports: [{DIRECT}, {DIRECT}/udp]
    from: plane:inference
"""
GATEWAY_RULES = f"""\
version: 1
workload: gateway
mode: enforce
match: {{unit: gateway.service}}
egress:
  - to: workload:model
    ports: [{MODEL}, {MODEL}/udp]
ingress:
  - ports: [{GATEWAY}, {GATEWAY}/udp]
    from: clients
"""
OTHER_RULES = """\
version: 1
workload: other
mode: enforce
match: {unit: other.service}
egress:
  - to: any
    ports: [any]
ingress: []
"""
FILES = {
    "penstock.yaml": HOST_FILE,
    "rules.d/model.yaml": MODEL_RULES,
    "rules.d/gateway.yaml": GATEWAY_RULES,
    "rules.d/other.yaml": OTHER_RULES,
}
WORKLOADS = {"model": MODEL, "gateway": GATEWAY, "other": OTHER}

EXPECTED: dict[str, set[int]] = {
    "client": {DIRECT, GATEWAY, BYSTANDER},
    "admin": {METRICS, SSH, BYSTANDER},
    "stranger": {SSH, BYSTANDER},
    "gateway": {MODEL, GATEWAY},
    "other": {OTHER, BYSTANDER},
    "model": {MODEL, METRICS, LOCAL, DIRECT},  # and its ephemeral port
    "nobody": {LOCAL, SSH, BYSTANDER},
}
"""Which ports each reaches, in plain words: of no use if the evaluator were wrong as well."""


@dataclass
class Set:
    """What was found on a host of a release."""

    undeclared: int
    open: list[Outcome]
    """How it was before rules."""
    now: list[Outcome]


@pytest.fixture(scope="module")
def made(world: World, older_release: str) -> Set:
    """Everything in force, after all was tried without rules."""
    if not world.hosts:
        give_addresses(world, [*CLIENT, *ADMIN])
    host = world.boot(f"m-{older_release}", older_release, image=image(older_release))
    at = Installed(world, host)
    probes = {name: install_probe(host, f"{name}.service", port=port) for name, port in WORKLOADS.items()}
    install_probe(host, "ssh.service", port=SSH)
    install_probe(host, "bystander.service", port=BYSTANDER)
    for path, text in FILES.items():
        host.write(f"/etc/penstock/{path}", text)
    for name in WORKLOADS:
        host.run(["penstock", "protect", f"{name}.service"])
    undeclared = serve(probes["model"])
    before = matrix(world, at, undeclared).outcomes()
    host.run(["penstock", "apply"])
    for probe in probes.values():
        probe.systemctl("restart")
    undeclared = serve(probes["model"])
    at.wait_for(lambda: at.enforcing(*WORKLOADS))
    assert {at.workload(name)["enrolment"] for name in WORKLOADS} == {"slice"}
    return Set(undeclared, before, matrix(world, at, undeclared).outcomes())


def serve(model: Probe) -> int:
    """Have the model server listen on all its ports; returns the one that the kernel chose and no rule names."""
    for port in (METRICS, LOCAL, DIRECT):
        assert model.listen(port).outcome == "ok"
    return int(model.listen(0).reply)


def matrix(world: World, at: Installed, undeclared: int) -> Matrix:
    """As the units run now."""
    inside = [
        Source(name, cgroup=at.show(f"{name}.service", "ControlGroup")[0].lstrip("/"), workload=name)
        for name in WORKLOADS
    ]
    outside = [Source("client", CLIENT), Source("admin", ADMIN), Source("stranger", STRANGER)]
    listeners = [Listener("model", port) for port in (MODEL, METRICS, LOCAL, DIRECT, undeclared)]
    listeners += [Listener("gateway", GATEWAY), Listener("other", OTHER)]
    listeners += [Listener(NOBODY, SSH), Listener(NOBODY, BYSTANDER)]
    return Matrix(world, at.host, FILES, [*outside, *inside, Source("nobody")], listeners)


def test_all_is_open_before(made: Set) -> None:
    """Without this a port that nobody listens on would count as denied."""
    assert [str(one) for one in made.open if not one.reached] == []


def test_each_cell_is_as_the_evaluator_says(made: Set) -> None:
    print(table(made.now))
    assert len(made.now) == 9 * 2 * (3 * 2 + 4 * 4)
    assert not wrong(made.now), wrong(made.now)


def test_each_source_reaches_what_it_shall_and_no_more(made: Set) -> None:
    """By the evaluator, which the cells agree with: both verdicts are there for each source."""
    expected = {**EXPECTED, "model": EXPECTED["model"] | {made.undeclared}}
    ports = {one.listener.port for one in made.now}
    for source, wanted in expected.items():
        mine = [one for one in made.now if one.source == source]
        assert {one.cell.port for one in mine if one.reached} == wanted, source
        assert {one.cell.port for one in mine if not one.reached} == ports - wanted, source
