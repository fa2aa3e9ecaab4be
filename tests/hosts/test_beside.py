"""penstock beside others that load rules: nftables.service, firewalld, ufw, and podman with its network.

Neither changes the other: what the tool loaded is the same line for line whatever penstock does, from its
installation to its end, and what penstock denies stays denied whatever the tool does.  Where the tool takes all
rules of the host away, ours included, they are back at once.

A service tries everything every millisecond all the while, and the wire tells what came of it.  Docker itself
cannot run on these hosts, see `hosts.others`; nothing here is about its engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from hosts import others
from hosts.host import SCOPE, Host
from hosts.installed import ALLOWED, CLOSED, OPEN, RULES, TCP, UDP, Installed
from hosts.others import PUBLIC, PUBLISHED, REFUSED, TOOLS, Tool
from hosts.outside import REGISTRY, STRANGER
from hosts.wire import Packet
from hosts.world import World
from pace import slow
from penstock.demo import probe

pytestmark = pytest.mark.usefixtures("first_instruction")

FAMILIES = (4, 6)
NAME, UNIT = "model", "model.service"
BEAT = 60
"""Rounds of the service, of about a millisecond each, in which everything has been tried."""
PAIRS = [
    ("nftables", "bookworm"),
    ("firewalld", "trixie"),  # whose table has an owner
    ("ufw", "bookworm"),
    ("podman", "bookworm"),  # which uses iptables-nft
    ("podman", "trixie"),  # which has a table of its own
]
MORE = [("nftables", "trixie"), ("firewalld", "bookworm"), ("ufw", "trixie")]
"""With --full."""
RUNS_BEFORE = {"bookworm"}
"""Whether the tool runs when penstock is installed, or is started after that."""
GOVERNED = "penstock.slice/penstock-model.slice/test.scope"
POLICY = RULES.replace("ports: [", "ports: [443, 5000/udp, ", 1)
"""With the registry's ports that are answered, beside those of the hammer."""
EVERYWHERE = f"""\
import socket
for where, places in {({"registry": REGISTRY, "stranger": STRANGER})!r}.items():
    for address in places:
        for kind, port in (socket.SOCK_STREAM, 443), (socket.SOCK_DGRAM, 5000):
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
                sock.settimeout(3)
                try:
                    sock.connect((address, port))
                    sock.send(b"hello")
                    print(where, sock.recv(9) == b"hello")
                except OSError:
                    print(where, False)
"""
"""TCP and UDP, both families: a line each, whether it was answered."""
FOREIGN = f"""\
table inet foreign {{{{
	chain input {{{{
		type filter hook input priority {{priority}}
		udp dport {OPEN} drop
		tcp dport {CLOSED} accept
	}}}}
	chain output {{{{
		type filter hook output priority {{priority}}
		ip daddr {REGISTRY[0]} tcp dport {TCP} drop
		ip6 daddr {REGISTRY[1]} tcp dport {TCP} drop
		ip daddr {STRANGER[0]} accept
		ip6 daddr {STRANGER[1]} accept
	}}}}
}}}}
"""
"""Drops what penstock allows, accepts what it denies."""
MARKS = f"""\
table inet marks {{
	counter kept {{ }}
	counter lost {{ }}
	counter zoned {{ }}
	counter unzoned {{ }}
	counter labelled {{ }}
	chain prerouting {{
		type filter hook prerouting priority raw
		udp sport {{ 5000, {UDP} }} ct zone set 7
	}}
	chain output {{
		type filter hook output priority raw
		udp dport {{ 5000, {UDP} }} ct zone set 7
	}}
	chain mangle {{
		type filter hook output priority mangle
		tcp dport {{ 443, {TCP} }} meta mark set 0x30
		oif lo ct label set 100
	}}
	chain postrouting {{
		type filter hook postrouting priority 300
		tcp dport {{ 443, {TCP} }} meta mark 0x30 ct mark 0x77 counter name kept accept
		tcp dport {{ 443, {TCP} }} tcp flags syn counter name lost
		udp dport {{ 5000, {UDP} }} ct zone 7 counter name zoned accept
		udp dport {{ 5000, {UDP} }} counter name unzoned
	}}
	chain input {{
		type filter hook input priority 300
		iif lo tcp dport {OPEN} ct label 100 counter name labelled
	}}
}}
"""
"""Beside that of nftables.service, which marks connections."""


Test = Callable[..., None]


def on(name: str) -> Callable[[Test], Test]:
    """Only beside this tool."""

    def mark(test: Test) -> Test:
        test.__dict__["tool"] = name
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test beside each tool, or beside the one that it is for."""
    if "beside" in metafunc.fixturenames:
        only = metafunc.function.__dict__.get("tool")
        pairs = PAIRS + MORE if metafunc.config.getoption("--full") else PAIRS
        pairs = [pair for pair in pairs if only in (None, pair[0])]
        metafunc.parametrize("beside", pairs, ids="-".join, indirect=True, scope="module")


@dataclass(slots=True)
class Beside:
    """A host with both on it."""

    name: str
    tool: Tool
    installed: Installed
    client: Host
    loads: list[str] = field(default_factory=list)
    """What the tool loads on a host without penstock."""
    rules: list[str] = field(default_factory=list)
    """What it loaded last: the same, but not all of them keep the order."""
    all_rules: str = ""
    """Every rule of the host before penstock came."""

    @property
    def host(self) -> Host:
        return self.installed.host

    def ours(self) -> list[str]:
        """Our table without what counts."""
        return self.installed.sh("nft -s list table inet penstock").splitlines()

    def starts(self) -> str:
        """Changes with each start of the tool's service."""
        return self.installed.show(self.tool.unit, "InvocationID")[0] if self.tool.unit else ""

    def theirs_are_the_same(self) -> None:
        """Nobody changed what the tool loaded."""
        assert others.rules_of_others(self.host) == self.rules

    def theirs_are_back(self) -> None:
        """The tool loaded what it loads without us.  Some that are told to do so do it a moment later."""
        wanted, deadline = sorted(self.loads), time.monotonic() + 5
        while sorted(found := others.rules_of_others(self.host)) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sorted(found) == wanted
        self.rules = found

    # --- what is on the wire ---

    def beat(self, rounds: int = BEAT) -> None:
        """Until the service has tried everything so often again."""

        def done() -> float:
            return self.installed.hammered(UNIT).get("rounds", 0)

        until = done() + rounds
        self.host.wait_until(lambda: done() >= until)

    def escaped(self, since: int) -> list[Packet]:
        """What left to where no rule leads."""
        seen = self.installed.world.outside.seen(self.host.name, since=since)
        return [packet for packet in seen if packet.destination in STRANGER]

    @contextmanager
    def nothing_gets_out(self) -> Iterator[None]:
        """Meanwhile, and what is allowed does."""
        mark = self.installed.world.outside.mark()
        yield
        self.beat()
        assert self.escaped(mark) == []
        self.goes_on(mark)

    def goes_on(self, mark: int) -> None:
        """The control: what the rules allow leaves."""
        for shot in ALLOWED:
            assert self.installed.world.outside.seen(self.host.name, to=shot.address, port=shot.port, since=mark)

    def gap(self, work: Callable[[], object]) -> tuple[float, int]:
        """Do what takes our rules away; seconds between the first and the last denied packet, and how many."""
        outside = self.installed.world.outside
        start = mark = outside.mark()
        work()
        deadline = time.monotonic() + 10
        while True:
            self.beat()
            if not self.escaped(mark):
                break
            assert time.monotonic() < deadline, "it is still open"
            mark = outside.mark()
        packets = self.escaped(start)
        return (packets[-1].time - packets[0].time if packets else 0.0), len(packets)

    def flushes(self, how: str) -> None:
        """Make the tool load its rules; ours go with that, and are back."""
        if self.tool.unit:
            self.host.run(["systemctl", "reset-failed", self.tool.unit])  # its own limit of starts
        took, count = self.gap(lambda: self.installed.sh(how))
        print(f"{how}: {took * 1000:.0f} ms open, {count} packets")
        assert took < slow(1), self.said()
        self.theirs_are_back()

    def said(self) -> str:
        """The last words of ours, for whoever must find out why something took long."""
        return self.host.sh("journalctl -q -b -o short-precise -n 40 -u 'penstock*'")

    def is_open(self) -> None:
        """Everything leaves: the control of all that did not."""
        mark = self.installed.world.outside.mark()
        self.beat()
        assert {packet.destination for packet in self.escaped(mark)} == set(STRANGER)


@pytest.fixture(scope="module")
def client(world: World) -> Host:
    """Whom the tools know by its addresses."""
    made = world.boot("client")
    assert made.addresses == others.CLIENT
    return made


@pytest.fixture(scope="module")
def beside(request: pytest.FixtureRequest, world: World, client: Host) -> Iterator[Beside]:
    """The tool set up and running, and penstock installed, enforcing one service."""
    name, release = request.param
    start = time.monotonic()
    tool, host = TOOLS[name], world.boot(f"{name[:10]}-{release[0]}", release)
    others.put(host, tool)
    made = Beside(name, tool, Installed(world, host), client)
    host.sh(tool.start)
    made.loads, made.all_rules = others.rules_of_others(host), host.sh("nft -s list ruleset")
    assert made.loads, "it loads something"
    made.rules = made.loads
    if release not in RUNS_BEFORE:
        host.sh(tool.stop)
        assert others.rules_of_others(host) != made.loads
    started = made.starts()
    made.installed.install()
    made.installed.hammer(UNIT)
    host.sh(f"systemctl enable --now {UNIT}")
    made.beat()
    made.installed.enforce(NAME, UNIT, text=POLICY)
    host.sh(f"systemctl restart {UNIT}")
    if release in RUNS_BEFORE:
        assert made.starts() == started, "nothing is restarted unasked"
    else:
        host.sh(tool.start)
        made.theirs_are_back()
    made.installed.wait_for(lambda: made.installed.enforcing(NAME))
    made.beat()
    print(f"\n{name} on {release}: {len(made.loads)} lines of rules, ready after {time.monotonic() - start:.1f} s")
    yield made
    if host.running:
        host.crash()


def test_neither_changed_the_other(beside: Beside) -> None:
    beside.theirs_are_the_same()
    with beside.nothing_gets_out():
        beside.beat()
    assert beside.installed.workload(NAME)["enrolment"] == "slice"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rules_of_both_hold(beside: Beside, family: int) -> None:
    """What one of them denies is denied; what the tool opens does not open what penstock closes."""
    address, client = beside.host.address(family), beside.client
    assert connect(client, address, OPEN) == "ok", "both let it pass"
    assert connect(client, address, CLOSED) == "ECONNREFUSED"
    assert client.tcp(address, PUBLIC).reply == b"hello", "nobody's business but its own"
    if beside.name == "podman":
        assert client.tcp(address, PUBLISHED).reply == b"hello"
        assert bridged(beside, STRANGER[family == 6]) == "b'hello'"
        assert client.tcp(address, REFUSED).outcome == "ok", "podman closes nothing"
    else:
        assert client.tcp(address, REFUSED, timeout=1).outcome != "ok"
        assert beside.host.tcp(address, REFUSED).outcome == "ok", "from the host itself"
    assert beside.host.tcp(STRANGER[family == 6], 443).outcome == "ok", "the host itself is no workload"


def connect(host: Host, address: str, port: int) -> str:
    """What comes of it, nothing said: whoever hammers at the other end may close at once."""
    return host.call(probe.tcp, address, port, b"", 2).outcome


def bridged(beside: Beside, address: str) -> str:
    """What a container on the bridge gets when it connects there."""
    code = f"import socket as s; c = s.create_connection(({address!r}, 443)); c.send(b'hello'); print(c.recv(9))"
    return beside.host.run(["podman", "exec", "web", "/usr/bin/python3", "-c", code]).stdout.strip()


def test_whatever_penstock_does_theirs_stay(beside: Beside) -> None:
    """It applies, is restarted, mends its table, loads its floor."""
    installed, started = beside.installed, beside.starts()
    with beside.nothing_gets_out():
        installed.rules("further", "further.service")
        installed.sh("penstock apply")
        beside.theirs_are_the_same()
        installed.sh("rm /etc/penstock/rules.d/further.yaml; penstock apply; systemctl restart penstock")
        installed.wait_for(lambda: installed.enforcing(NAME))
        beside.theirs_are_the_same()
        installed.sh("systemctl reload penstock-floor; systemctl start penstock-floor-again")
        beside.theirs_are_the_same()
    took, count = beside.gap(lambda: installed.sh("nft delete table inet penstock"))
    print(f"our table deleted: {took * 1000:.0f} ms open, {count} packets")
    assert took < slow(1), beside.said()
    installed.sh("systemctl stop penstock; systemctl reload penstock-floor")
    with beside.nothing_gets_out():
        beside.theirs_are_the_same()
    installed.sh("systemctl start penstock")
    installed.wait_for(lambda: installed.enforcing(NAME))
    beside.theirs_are_the_same()
    assert beside.starts() == started


def test_whatever_the_tool_does_ours_stay_or_are_back(beside: Beside) -> None:
    """With the agent and without.  Where the tool flushes all rules, ours are back in less than a second."""
    installed = beside.installed
    told, before = len(installed.findings("foreign-change")), beside.ours()
    for how in beside.tool.again:
        with beside.nothing_gets_out():
            installed.sh(how)
            beside.theirs_are_back()
        assert beside.ours() == before, how
    assert len(installed.findings("foreign-change")) == told, "nobody touched it"
    for how in beside.tool.flush:
        beside.flushes(how)
        installed.wait_for(lambda: installed.enforcing(NAME))
        assert any("(by 'nft'" in one["text"] for one in installed.findings("foreign-change"))
    installed.sh("systemctl stop penstock")
    for how in beside.tool.again[-1:]:
        with beside.nothing_gets_out():
            installed.sh(how)
            beside.theirs_are_back()
    for how in beside.tool.flush * 3:
        beside.flushes(how)
        assert installed.host.read("/run/penstock/floor").startswith("loaded ")
    installed.sh("systemctl start penstock")
    installed.wait_for(lambda: installed.enforcing(NAME))


def test_stopped_for_good(beside: Beside) -> None:
    """The tool goes and comes; with the agent alive ours hold throughout, but for the moment after a flush."""
    took, count = beside.gap(lambda: beside.installed.sh(beside.tool.stop))
    print(f"{beside.tool.stop}: {took * 1000:.0f} ms open, {count} packets")
    assert took < slow(1) if beside.tool.flush else count == 0
    with beside.nothing_gets_out():
        for family in FAMILIES:
            address = beside.host.address(family)
            assert beside.client.tcp(address, REFUSED).outcome == "ok", "the control: now nobody denies it"
            assert connect(beside.client, address, CLOSED) == "ECONNREFUSED"
    took, count = beside.gap(lambda: beside.installed.sh(beside.tool.start))
    assert took < slow(1) if beside.tool.flush else count == 0
    beside.theirs_are_back()


@on("nftables")
@pytest.mark.parametrize("priority", [-10, 10])
def test_a_drop_of_anybody_counts_and_an_accept_of_nobody_opens(beside: Beside, priority: int) -> None:
    """Whether his chain comes before ours or after."""
    host, outside = beside.host, beside.installed.world.outside

    def connects() -> set[str]:
        mark = outside.mark()
        beside.beat()
        assert beside.escaped(mark) == []
        return {packet.destination for packet in outside.seen(host.name, port=TCP, since=mark, opens=True)}

    host.run(["nft", "-f", "-"], input=FOREIGN.format(priority=priority))
    assert connects() == set()
    for family in FAMILIES:
        assert connect(beside.client, host.address(family), CLOSED) == "ECONNREFUSED"
        assert connect(beside.client, host.address(family), OPEN) == "ok"
        assert beside.client.udp(host.address(family), OPEN, timeout=0.5).outcome == "timeout"
    host.run(["nft", "delete", "table", "inet", "foreign"])
    assert connects() == set(REGISTRY), "the control"
    for family in FAMILIES:
        assert beside.client.udp(host.address(family), OPEN).outcome == "ok", "the control"


@on("nftables")
def test_marks_labels_and_zones_of_others_stay(beside: Beside) -> None:
    """On connections of a workload as on those of everybody else."""
    host = beside.host

    def packets(counter: str) -> int:
        return int(host.sh(f"nft list counter inet marks {counter}").split("packets ")[1].split()[0])

    host.run(["nft", "-f", "-"], input=MARKS)
    beside.beat(200)
    for address in REGISTRY:
        for cgroup in (GOVERNED, SCOPE):
            assert host.tcp(address, 443, cgroup=cgroup).reply == b"hello"
            assert host.udp(address, 5000, cgroup=cgroup).reply == b"hello"
    for address in ("127.0.0.1", "::1"):
        labelled = packets("labelled")
        itself = host.call_in(GOVERNED, probe.tcp, address, OPEN, b"", 2)
        assert itself.outcome == "ok"
        assert packets("labelled") > labelled
    assert packets("kept") > 20
    assert packets("zoned") > 20
    assert packets("lost") == packets("unzoned") == 0
    host.run(["nft", "delete", "table", "inet", "marks"])


def container(beside: Beside, *options: str) -> list[str]:
    """What a container gets that tries everything, with these options of podman run."""
    argv = ["podman", "run", "--rm", *options, "-v", "/usr:/usr:ro", "--rootfs", "/opt/root"]
    return beside.host.run([*argv, "/usr/bin/python3", "-c", EVERYWHERE]).stdout.splitlines()


@on("podman")
def test_a_container_on_the_hosts_network_is_governed_by_its_slice(beside: Beside) -> None:
    """Also the second one, when the slice went with the first; those outside the slice are nobody's business."""
    installed, outside = beside.installed, beside.installed.world.outside
    lines = POLICY.format(name="boxed", unit="").splitlines(keepends=True)
    boxed = "".join(line for line in lines if not line.startswith("match:"))
    installed.host.write("/etc/penstock/rules.d/boxed.yaml", boxed)
    installed.sh("penstock apply")
    for _ in range(3):
        installed.wait_for(lambda: installed.enforcing(NAME, "boxed"))
        mark = outside.mark()
        said = container(beside, "--network=host", "--cgroup-parent=penstock-boxed.slice")
        assert said == ["registry True"] * 4 + ["stranger False"] * 4
        assert beside.escaped(mark) == []
    assert installed.workload("boxed")["denied"] >= 4
    for network in ("host", "both"):
        mark = outside.mark()
        assert container(beside, f"--network={network}") == ["registry True"] * 4 + ["stranger True"] * 4
        assert {packet.destination for packet in beside.escaped(mark)} == set(STRANGER)
    installed.sh("rm /etc/penstock/rules.d/boxed.yaml; penstock apply")


@on("podman")
def test_somebody_flushes_everything(beside: Beside) -> None:
    """Podman's rules are podman's to load again; that does not touch ours, which are back before."""
    took, count = beside.gap(lambda: beside.installed.sh("nft flush ruleset"))
    print(f"flushed: {took * 1000:.0f} ms open, {count} packets")
    assert took < slow(1), beside.said()
    with beside.nothing_gets_out():
        beside.installed.sh("podman network reload --all")
        beside.theirs_are_back()
    for family in FAMILIES:
        assert beside.client.tcp(beside.host.address(family), PUBLISHED).reply == b"hello"


def test_over_a_reboot(beside: Beside) -> None:
    """Both are there again, and nothing gets out in between."""
    mark, before = beside.installed.world.outside.mark(), beside.installed.hammered(UNIT)["first"]
    beside.host.reboot()
    beside.host.wait_until(lambda: beside.installed.hammered(UNIT)["first"] != before)
    if beside.tool.boot:
        beside.host.sh(beside.tool.boot)
    beside.installed.wait_for(lambda: beside.installed.enforcing(NAME))
    beside.beat()
    assert beside.escaped(mark) == []
    beside.goes_on(mark)
    beside.theirs_are_back()


def test_uninstalling_leaves_theirs_alone(beside: Beside) -> None:
    """And the rules of the host are those of before."""
    host, started = beside.host, beside.starts()
    if beside.tool.boot:
        address = host.address(4)
        assert beside.client.tcp(address, PUBLISHED).reply == b"hello"
    host.run(["penstock", "uninstall", "--yes", "--purge"])
    host.sh(f"systemctl restart {UNIT}")
    beside.theirs_are_the_same()
    assert sorted(host.sh("nft -s list ruleset").splitlines()) == sorted(beside.all_rules.splitlines())
    assert beside.starts() == started
    beside.is_open()
    for family in FAMILIES:
        address = host.address(family)
        assert connect(beside.client, address, CLOSED) == "ok", "the control: it was penstock that closed it"
        if beside.name == "podman":
            assert beside.client.tcp(address, PUBLISHED).reply == b"hello"
            assert bridged(beside, STRANGER[family == 6]) == "b'hello'"
        else:
            assert beside.client.tcp(address, REFUSED, timeout=1).outcome != "ok"
