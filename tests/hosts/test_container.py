"""A gateway that is a container on the network of the host: its processes are the workload's, and nobody else's.

The container is podman's, without an image: a small root directory, with the host's /usr in it.  What is in which
cgroup is the same with Docker's systemd driver, which does not run on these hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from hosts.host import SCOPE, Host
from hosts.installed import Installed, image
from hosts.outside import REGISTRY, STRANGER
from hosts.probe import PROGRAM, Probe, install_probe
from hosts.world import World
from penstock.core.slices import slice_unit

SERVER, FAR = 8080, 443
NAME = "gate-way"
SLICE = slice_unit(NAME)
"""With a dash that is escaped."""
IN_SLICE = f"--cgroup-parent={SLICE}"
MODEL = f"""\
version: 1
workload: model
mode: enforce
match: {{unit: model.service}}
egress: []
ingress: [{{ports: [{SERVER}, {SERVER}/udp], from: "workload:{NAME}"}}]
"""
GATEWAY = f"""\
version: 1
workload: {NAME}
mode: enforce
match: {{unit: matched.service}}
egress:
  - {{to: "workload:model", ports: [{SERVER}, {SERVER}/udp]}}
  - {{to: [{REGISTRY[0]}, "{REGISTRY[1]}"], ports: [{FAR}, {FAR}/udp]}}
ingress: []
"""
ROOT = """
for name in proc sys dev tmp run etc var usr; do mkdir -p /opt/root/$name; done
for name in bin sbin lib lib64; do [ ! -L /$name ] || cp -a /$name /opt/root/; done
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("ok")
except OSError:
    print("refused")
"""
UNIT = """\
[Service]
ExecStart=/usr/bin/podman run --rm --name={name} --network=host {options}
ExecStop=/usr/bin/podman rm -f -t 0 {name}
{lines}
"""
QUADLET = """\
[Container]
ContainerName={name}
Rootfs=/opt/root
Network=host
Volume=/usr:/usr:ro
Volume=/run/{name}:/run/{name}
PodmanArgs=--stop-timeout=0
Exec={command}
[Service]
Slice={slice}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """How a unit runs a container, and what the manual says of that."""

    options: str
    lines: str = ""
    governed: bool = True
    how: str = "slice"


WAYS = {
    "split": Way("--cgroups=split", f"Slice={SLICE}"),
    "parent": Way(IN_SLICE),
    "matched": Way("--cgroups=split", how="in-place"),
    "client": Way("", f"Slice={SLICE}", governed=False),
}


class Set:
    """A model server in its slice, rules of a gateway, and no gateway yet."""

    def __init__(self, at: Installed, model: Probe) -> None:
        self.at = at
        self.host: Host = at.host
        self.model = model
        self.world = at.world

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Addresses of the host, as seen from itself."""
        return ("127.0.0.1", "::1", *self.host.addresses)

    def container(self, name: str, port: int, *options: str, network: str = "host") -> Probe:
        """Run one, on the host's network."""
        argv = ["podman", "run", "--detach", f"--name={name}", f"--network={network}", *options]
        self.host.sh(f"mkdir -p /run/{name}")
        self.host.run([*argv, *arguments(name, port)])
        return self.ready(name, port)

    def ready(self, name: str, port: int) -> Probe:
        """It takes orders."""
        probe = Probe(self.host, f"{name}.service", port)
        probe.wait_ready()
        return probe

    def remove(self, *names: str) -> None:
        """Nothing of these containers is left."""
        self.host.run(["podman", "rm", "--force", "--time=0", "--ignore", *names])

    def units(self) -> dict[str, str]:
        """The units of the gateway that run something, and how each came to belong to it."""
        return {unit["unit"]: unit["how"] for unit in self.at.workload(NAME)["units"] if unit["processes"]}

    def listening(self, port: int) -> bool:
        """Whether status tells that the gateway listens there."""
        shown = self.host.run(["penstock", "status", NAME], check=False).stdout
        return f":{port} (python3)" in shown

    def arrives(self, probe: Probe) -> bool:
        """One connection to the model server."""
        return probe.tcp("::1", SERVER).outcome == "ok"

    def gets_through(self, probe: Probe) -> bool:
        """TCP and UDP to each address of the model server; AssertionError when only some get there."""
        outcomes = [call(a, SERVER).outcome for a in self.everywhere for call in (probe.tcp, probe.udp)]
        good = [outcome == "ok" for outcome in outcomes]
        assert all(good) or not any(good), outcomes
        return all(good)

    def is_held(self, probe: Probe) -> None:
        """What it sends out is what the gateway's rules allow."""
        mark = self.world.outside.mark()
        for registry, stranger in zip(REGISTRY, STRANGER, strict=True):
            assert [call(registry, FAR).outcome for call in (probe.tcp, probe.udp)] == ["ok", "ok"]
            assert "ok" not in [call(stranger, FAR).outcome for call in (probe.tcp, probe.udp)]
        seen = self.world.outside.seen(self.host.name, since=mark)
        assert {packet.destination for packet in seen} == set(REGISTRY)

    def is_free(self, probe: Probe) -> None:
        """No rule is about it."""
        for stranger in STRANGER:
            assert [call(stranger, FAR).outcome for call in (probe.tcp, probe.udp)] == ["ok", "ok"]


def command(name: str, port: int) -> list[str]:
    """What runs inside."""
    return ["/usr/bin/python3", "-I", PROGRAM, f"/run/{name}/orders", str(port)]


def arguments(name: str, port: int) -> list[str]:
    """The last ones of podman run."""
    return ["-v", "/usr:/usr:ro", "-v", f"/run/{name}:/run/{name}", "--rootfs", "/opt/root", *command(name, port)]


@pytest.fixture(scope="module")
def made(world: World, older_release: str) -> Set:
    """A container that is the gateway, in front of a model server."""
    at = Installed(world, world.boot(f"box-{older_release}", older_release, image=image(older_release)))
    model = install_probe(at.host, "model.service", port=SERVER)
    at.host.write("/etc/penstock/rules.d/model.yaml", MODEL)
    at.host.write(f"/etc/penstock/rules.d/{NAME}.yaml", GATEWAY)
    at.sh(ROOT)
    found = Set(at, model)
    bystander = found.container("early", 7100)
    assert found.gets_through(bystander), "all is open at first"
    found.remove("early")
    at.sh("penstock protect model.service; penstock apply; systemctl restart model.service")
    model.wait_ready()
    at.wait_for(lambda: at.enforcing("model", NAME))
    return found


@pytest.fixture
def gateway(made: Set) -> Iterator[Probe]:
    """A container in the workload's slice."""
    yield made.container("gw", 7200, IN_SLICE)
    made.remove("gw")


def test_the_container_in_the_slice_and_nobody_else(made: Set, gateway: Probe) -> None:
    assert made.gets_through(gateway)
    made.is_held(gateway)
    assert made.at.workload(NAME)["enrolment"] == "slice"
    assert any(unit.startswith("libpod-") for unit in made.units())
    assert made.listening(gateway.port)
    other = made.container("other", 7300)
    try:
        assert not made.gets_through(other)
        made.is_free(other)
        assert not made.listening(other.port)
    finally:
        made.remove("other")
    for address in made.everywhere:
        assert made.host.tcp(address, SERVER, cgroup=SCOPE).outcome != "ok"


def test_what_is_started_in_it_later(made: Set, gateway: Probe) -> None:
    """`podman exec`, as health checks do: of the workload too."""
    argv = ["podman", "exec", "gw", "/usr/bin/python3", "-I", "-c", CONNECT]
    for address in made.everywhere:
        assert made.host.run([*argv, address, str(SERVER)]).stdout == "ok\n"
    mark = made.world.outside.mark()
    for address in STRANGER:
        assert made.host.run([*argv, address, str(FAR)]).stdout == "refused\n"
    assert not [p for p in made.world.outside.seen(made.host.name, since=mark) if p.destination in STRANGER]


@pytest.mark.parametrize("daemon", [True, False], ids=["with-daemon", "without-daemon"])
def test_again_and_again(made: Set, daemon: bool, request: pytest.FixtureRequest) -> None:
    """Restarted, and removed and run again; its right does not stay with its name or its port."""
    if not daemon and not request.config.getoption("--full"):
        pytest.skip("with --full only")
    made.container("gw", 7200, IN_SLICE)
    if not daemon:
        made.host.run(["systemctl", "stop", "penstock.service"])
    try:
        made.host.run(["podman", "restart", "--time=0", "gw"])
        again = made.ready("gw", 7200)
        assert made.gets_through(again)
        made.remove("gw")
        assert not made.gets_through(made.container("gw", 7200)), "of that name, and elsewhere"
        made.remove("gw")
        again = made.container("gw", 7200, IN_SLICE)
        assert made.gets_through(again)
        made.is_held(again)
    finally:
        made.remove("gw")
        made.host.run(["systemctl", "start", "penstock.service"])
    made.at.wait_for(lambda: made.at.enforcing("model", NAME))


def test_a_container_with_a_network_of_its_own(made: Set) -> None:
    """In the slice, and not recognised: it gets nowhere near the model server, and a finding says why."""
    away = made.container("away", 7400, IN_SLICE, network="podman")
    try:
        assert away.tcp(STRANGER[0], FAR).outcome == "ok", "not governed"
        outcomes = [call(made.host.v4, SERVER).outcome for call in (away.tcp, away.udp)]
        assert "ok" not in outcomes
        made.at.wait_for(lambda: made.at.findings("other-network", NAME))
    finally:
        made.remove("away")


@pytest.mark.parametrize("name", WAYS)
def test_by_a_unit(made: Set, name: str, request: pytest.FixtureRequest) -> None:
    """Each way to run one that the manual tells of."""
    if not request.config.getoption("--full"):
        pytest.skip("with --full only")
    way, port = WAYS[name], 7500 + list(WAYS).index(name)
    options = " ".join([way.options, *arguments(name, port)])
    text = UNIT.format(name=name, options=options.replace("\\", r"\\"), lines=way.lines)
    made.host.write(f"/etc/systemd/system/{name}.service", text)
    started(made, name, port, way.governed, way.how)


def test_by_a_quadlet(made: Set, older_release: str) -> None:
    if older_release == "bookworm":
        pytest.skip("podman 4.3 of Debian 12 knows no quadlets; on Debian 13 with --full")
    text = QUADLET.format(name="quad", slice=SLICE, command=" ".join(command("quad", 7600)))
    made.host.write("/etc/containers/systemd/quad.container", text)
    started(made, "quad", 7600, True, "slice")


def test_by_a_quadlet_from_boot_on(made: Set, older_release: str) -> None:
    """From its first instruction nothing leaves that its rules do not allow."""
    if older_release == "bookworm":
        pytest.skip("podman 4.3 of Debian 12 knows no quadlets; on Debian 13 with --full")
    tries = [word for address in STRANGER for word in ("--hammer", address, str(FAR))]
    text = QUADLET.format(name="boot", slice=SLICE, command=" ".join([*command("boot", 7700), *tries]))
    text += "RuntimeDirectory=boot\n[Install]\nWantedBy=multi-user.target\n"
    made.host.write("/etc/containers/systemd/boot.container", text)
    mark = made.world.outside.mark()
    made.host.reboot()
    probe = made.ready("boot", 7700)
    assert made.gets_through(probe)
    counts = probe.counts()
    assert counts["refused"] > 10
    assert not [p for p in made.world.outside.seen(made.host.name, since=mark) if p.destination in STRANGER]
    made.host.tcp(STRANGER[0], FAR)
    assert [p for p in made.world.outside.seen(made.host.name, since=mark) if p.destination in STRANGER], (
        "the control"
    )


def started(made: Set, name: str, port: int, governed: bool, how: str) -> None:
    """Start that unit, twice, and see whether the container is of the workload."""
    made.host.sh(f"mkdir -p /run/{name}; systemctl daemon-reload")
    try:
        for verb in ("start", "restart"):
            made.host.run(["systemctl", verb, name])
            probe = made.ready(name, port)
            made.at.wait_for(lambda: how in made.units().values())
            if how == "in-place":  # it takes a moment after each start
                made.host.wait_until(partial(made.arrives, probe))
            assert made.gets_through(probe) == governed
            if governed:
                made.is_held(probe)
            else:
                made.is_free(probe)
            assert made.listening(port) == governed
            assert bool(made.at.findings("container-outside", NAME)) != governed
    finally:
        made.host.run(["systemctl", "stop", name])
        made.remove(name)
