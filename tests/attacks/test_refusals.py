"""Who is refused is told at once, and no other news is lost with the refusals: path MTU, ICMP errors."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator

import pytest

from attacks import ops
from governed import Actor, Governed, eventually, rules
from penstock.demo.lab import Lab

pytestmark = pytest.mark.root

FAMILIES = [pytest.param(4, id="v4"), pytest.param(6, id="v6")]
SERVE, CALL = 8000, 9000


@pytest.fixture(autouse=True)
def policy(governed: Governed, lab: Lab) -> None:
    peer = lab.remote["registry"]
    addresses = f"[{peer.v4}, '{peer.v6}']"
    governed.load(
        rules(
            "w",
            egress=f"[{{to: {addresses}, ports: [{CALL}, {CALL}/udp]}}]",
            ingress=f"[{{from: {addresses}, ports: [{SERVE}, {SERVE}/udp]}}]",
        )
    )


@pytest.fixture(scope="module")
def remote(lab: Lab) -> Iterator[Actor]:
    with Actor(lab.remote["registry"]) as actor:
        yield actor


@pytest.fixture
def workload(governed: Governed, policy: None) -> Iterator[Actor]:
    with governed.actor("w") as actor:
        yield actor


def timed(address: str, port: int, count: int) -> tuple[list[str], float]:
    """Outcomes of TCP connects, and the median of their milliseconds."""
    outcomes, times = [], []
    for _ in range(count):
        start = time.perf_counter()
        outcomes.append(str(ops.connect(address, port)))
        times.append((time.perf_counter() - start) * 1000)
    return outcomes, statistics.median(times)


def timed_udp(address: str, port: int) -> tuple[str, float]:
    """The first error of a connected UDP socket, and after how many milliseconds."""
    with socket.socket(ops.family_of(address), socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.connect((address, port))
        start = time.perf_counter()
        try:
            s.send(b"x")
            s.recv(10)
            outcome = "ok"
        except OSError as error:
            outcome = ops.name_of(error)
        return outcome, (time.perf_counter() - start) * 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_connect_fails_in_a_millisecond(family: int, lab: Lab, workload: Actor) -> None:
    outcomes, median = workload(timed, lab.remote["stranger"].address(family), 80, 51)
    assert set(outcomes) == {"ECONNREFUSED"}
    assert median < 1
    print(f"median {median:.3f} ms")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_datagram_is_an_error_at_once(family: int, lab: Lab, workload: Actor) -> None:
    outcome, took = workload(timed_udp, lab.remote["stranger"].address(family), 80)
    assert outcome in ("EPERM", "EACCES", "EHOSTUNREACH")
    assert took < 20
    print(f"{took:.3f} ms")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_client_is_told_at_once(family: int, lab: Lab, workload: Actor, remote: Actor) -> None:
    here = lab.host.address(family)
    closed, opened = workload(ops.listen, here, SERVE + 1), workload(ops.listen, here, SERVE)
    assert isinstance(remote(ops.connect, here, SERVE), int)
    outcomes, median = remote(timed, here, SERVE + 1, 21)
    assert set(outcomes) == {"ECONNREFUSED"}
    assert median < 5
    receiver = workload(ops.udp, here, SERVE + 1)
    outcome, took = remote(timed_udp, here, SERVE + 1)
    assert outcome in ("EHOSTUNREACH", "EACCES")
    assert took < 50
    assert workload(ops.pending, receiver) == []
    workload(ops.close, closed, opened, receiver)



NEAR_MAC, FAR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


@pytest.fixture(scope="module")
def router(lab: Lab) -> dict[int, str]:
    """Addresses of a host behind the stranger, behind a link whose near end is narrow.  It stays with the lab."""
    middle = lab.remote["stranger"]
    far = {4: "198.51.100.77", 6: "2001:db8:51::77"}
    outside = [
        "netns add far",
        f"link add near address {NEAR_MAC} type veth peer name far address {FAR_MAC} netns far",
        "link set near up mtu 1300",
    ]
    inside = ["link set lo up", "link set far up mtu 1500"]
    for family, address in far.items():
        length, here = {4: 32, 6: 128}[family], lab.host.address(family)
        outside += [f"-{family} route add {address}/{length} dev near"]
        # Written down, so that no duplicate address detection has to be waited for.
        outside += [f"-{family} neigh add {address} lladdr {FAR_MAC} dev near"]
        inside += [f"-{family} addr add {address}/{length} dev far {'nodad' if family == 6 else ''}"]
        inside += [f"-{family} route add default dev far"]
        inside += [f"-{family} neigh add {here} lladdr {NEAR_MAC} dev far"]
        lab.host.run(
            ["ip", f"-{family}", "route", "add", address, "via", middle.address(family), "dev", "eth0", "onlink"]
        )
    for line in outside:
        middle.run(["ip", *line.split()])
    for line in inside:
        middle.run(["ip", "-n", "far", *line.split()])
    with Actor(middle) as actor:
        actor(ops.sysctl, net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")
    return far


FAR_END = """
import socket, sys
_, role, address, port = sys.argv
family = socket.AF_INET6 if ":" in address else socket.AF_INET
if role == "server":
    server = socket.create_server((address, int(port)), family=family)
print("ready", flush=True)
made = server.accept()[0] if role == "server" else socket.create_connection((address, port), 3)
total = 0
while data := made.recv(65536):
    total += len(data)
    if total >= 300000:
        break
print(total, flush=True)
"""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["uploads to a server", "serves a client"])
def test_path_mtu_discovery(
    role: str, family: int, lab: Lab, governed: Governed, router: dict[int, str]
) -> None:
    """A router with a narrow link says "too big"; without that news a transfer stands still."""
    far, here = router[family], lab.host.address(family)
    listed = f"'{far}'"
    governed.load(
        rules(
            "w",
            egress=f"[{{to: {listed}, ports: [{CALL}]}}]",
            ingress=f"[{{from: {listed}, ports: [{SERVE}]}}]",
        )
    )
    enter = ["ip", "netns", "exec", "far", "python3", "-c"]
    with governed.actor("w") as workload:
        if role == "serves a client":
            listener = workload(ops.listen, here, SERVE)
            child = lab.remote["stranger"].popen([*enter, FAR_END, "client", here, str(SERVE)], stdout=-1)
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            made = workload(ops.accept, listener)
        else:
            child = lab.remote["stranger"].popen([*enter, FAR_END, "server", far, str(CALL)], stdout=-1)
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            made = workload(ops.connect, far, CALL)
        assert isinstance(made, int), made
        assert workload(upload, made, 300000) == "ok"
        assert int(child.stdout.readline()) >= 300000
        child.wait(5)
    learned = lab.host.run(["ip", f"-{family}", "route", "get", far]).stdout
    lab.host.run(["ip", f"-{family}", "route", "flush", "cache"])
    assert "mtu 1300" in learned


def upload(descriptor: int, size: int) -> str:
    with ops.borrowed(descriptor) as sock:
        sock.settimeout(5)
        try:
            sock.sendall(b"x" * size)
        except OSError as error:
            return ops.name_of(error)
    return "ok"


@pytest.mark.parametrize("family", FAMILIES)
def test_icmp_errors_of_own_flows_arrive(family: int, lab: Lab, workload: Actor) -> None:
    """Nobody listens at the allowed port: the remote's "port unreachable" comes through."""
    sender = workload(connected, lab.remote["registry"].address(family), CALL)
    assert workload(ops.send, sender, b"anybody?") == "ok"
    eventually(lambda: workload(ops.receive, sender, 0.2) == "ECONNREFUSED")
    workload(ops.close, sender)


def connected(address: str, port: int) -> int:
    made = socket.socket(ops.family_of(address), socket.SOCK_DGRAM)
    made.connect((address, port))
    return made.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_traceroute_sees_the_hops(
    family: int, lab: Lab, governed: Governed, router: dict[int, str]
) -> None:
    """A datagram that dies on the way comes back as "time exceeded"."""
    far = router[family]
    governed.load(rules("w", egress=f"[{{to: '{far}', ports: [{CALL}/udp]}}]"))
    with governed.actor("w") as workload:
        assert workload(short_lived, far) == "EHOSTUNREACH"


def short_lived(address: str) -> str:
    with socket.socket(ops.family_of(address), socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        if ":" in address:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            s.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
        else:
            s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            s.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        s.connect((address, CALL))
        s.send(b"x")
        try:
            s.recv(100)
        except OSError as error:
            return ops.name_of(error)
    return "ok"
