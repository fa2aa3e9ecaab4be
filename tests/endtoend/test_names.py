"""Rules by name, from the query to the packet: the real daemon, its resolver, a real name server, real packets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count, product
from typing import Any

import dns.edns
import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from conftest import cannot_run
from daemon.running import Running
from governed import Actor, eventually
from penstock.core.resolver_wire import THERE
from penstock.demo.host import BASE_ENVIRONMENT
from penstock.demo.lab import Lab
from penstock.demo.recorder import Recorder

pytestmark = pytest.mark.root

SERVER = ("198.51.100.10", "2001:db8:51::10")
HUB = ("203.0.113.66", "2001:db8:66::66")
BLIND = ("203.0.113.66", "2001:db8:66::66")  # asked for names: nobody there answers
NAMES = ("hub.example", "cdn.example", "other.example")
HOST = 'version: 1\ndns: {upstream: [198.51.100.10, "2001:db8:51::10"]}\n'
RULES = "[{to: hub.example, ports: [443, 443/udp]}]"

AT_ONCE = 1.0
"""Seconds.  Whoever waits for something waits longer: a SYN that nobody answers comes again after one, the
resolver waits 1.5 for a server and 3 for the daemon.  Less than this a busy machine may take by itself.
"""


@pytest.fixture
def server(lab: Lab) -> Iterator[subprocess.Popen[Any]]:
    """A name server at `SERVER`, which knows `NAMES`, all of them at `HUB`; private.example is at home."""
    program = shutil.which("dnsmasq", path=BASE_ENVIRONMENT["PATH"]) or cannot_run("needs dnsmasq")
    argv = [program, "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts"]
    argv += ["--bind-interfaces", "--local=/#/", "--pid-file=", *(f"--listen-address={a}" for a in SERVER)]
    argv += [f"--host-record={name},{HUB[0]},{HUB[1]}" for name in NAMES]
    argv += ["--host-record=private.example,10.0.0.7"]
    process = lab.remote["registry"].popen(argv, stdin=subprocess.DEVNULL)
    with Actor(lab.host) as bystander:
        eventually(lambda: bystander(answers, SERVER[0]) and bystander(answers, SERVER[1]))
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def running(lab: Lab, server: subprocess.Popen[Any]) -> Iterator[Running]:
    with closing(Running(lab)) as daemon:
        daemon.write("penstock.yaml", HOST)
        yield daemon


def ask(name: str, kind: str = "A", at: str = BLIND[0], tcp: bool = False, timeout: float = 3) -> Any:
    """The answer of whoever answers there: (rcode, addresses, extended error, seconds); TimeoutError."""
    query = dns.message.make_query(name, kind, use_edns=0)
    began = time.monotonic()
    try:
        answer = (dns.query.tcp if tcp else dns.query.udp)(query, at, timeout)
    except dns.exception.Timeout as e:
        raise TimeoutError from e
    found = [str(one) for rrset in answer.answer for one in rrset if rrset.rdtype in (1, 28)]
    extended = [option.text for option in answer.options if isinstance(option, dns.edns.EDEOption)]
    return dns.rcode.to_text(answer.rcode()), found, extended, time.monotonic() - began


def refused_after(n: int, tcp: bool) -> float:
    """Seconds until a look-up over a connected socket, as the C library has, is refused."""
    began = time.monotonic()
    family = socket.AF_INET6 if n else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as asker:
        asker.settimeout(5)
        try:
            asker.connect((BLIND[n], 53))
            asker.send(dns.message.make_query("hub.example", "A").to_wire())
            raise AssertionError(f"there was an answer: {asker.recv(512)!r}")
        except TimeoutError:
            raise
        except OSError:
            return time.monotonic() - began


def answers(at: str) -> bool:
    """Whether a name server does so there."""
    try:
        return bool(ask("hub.example", at=at, timeout=0.5)[1])
    except OSError:
        return False


@contextmanager
def recorded(lab: Lab) -> Iterator[Recorder]:
    recorder = Recorder(lab, lab.remote["stranger"], ports=(443, 8443))
    try:
        yield recorder
    finally:
        recorder.stop()


def connect(address: str, port: int = 443) -> str:
    try:
        with socket.create_connection((address, port), 2):
            return "connected"
    except OSError as e:
        return type(e).__name__


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_look_up_opens_the_way_for_who_asked(running: Running, lab: Lab, version: int, tcp: bool) -> None:
    n = 0 if version == 4 else 1
    with recorded(lab) as recorder:
        running.rules("a", RULES)
        running.rules("b", RULES)
        running.up()
        with running.actor("a") as a, running.actor("b") as b:
            assert a(connect, HUB[n]) == "ConnectionRefusedError"
            rcode, found, why, _ = a(ask, "HUB.example", "A" if n == 0 else "AAAA", BLIND[n], tcp)
            assert (rcode, found, why) == ("NOERROR", [HUB[n]], [])
            assert a(connect, HUB[n]) == "connected"
            assert a(connect, HUB[n], 8443) == "ConnectionRefusedError"
            assert b(connect, HUB[n]) == "ConnectionRefusedError"
            assert len(recorder.arrivals("connect")) == 1


def test_why_asks_the_kernel_where_names_are(running: Running) -> None:
    running.rules("a", RULES)
    running.rules("b", RULES)
    running.up()

    def why(workload: str, what: str) -> tuple[int, str]:
        status, said = running.why(workload, what)
        return status, said["kernel"]

    hosts = [f"[{address}]" if ":" in address else address for address in HUB]
    assert why("a", "hub.example:443") == (0, "unknown")
    assert [why("a", f"{host}:443") for host in hosts] == [(1, "agrees")] * 2
    with running.actor("a") as a:
        for kind in ("A", "AAAA"):
            assert a(ask, "hub.example", kind)[1]
    assert why("a", "hub.example:443") == (0, "agrees")
    assert [list(running.ask("hits", workload=w)["names"].values()) for w in "ab"] == [[1], [0]]
    assert why("a", "hub.example:8443") == (1, "unknown")
    for host in hosts:
        assert [why("a", f"{host}:{port}") for port in ("443", "443/udp")] == [(0, "agrees")] * 2
        assert [why("a", f"{host}:{port}") for port in ("8443", "8443/udp")] == [(1, "agrees")] * 2
        assert why("b", f"{host}:443") == (1, "agrees")


def test_names_without_a_rule(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    with running.actor("a") as a:
        assert [a(ask, name)[0] for name in ("cdn.example", "x.hub.example", "hub.example")] == [
            *("NXDOMAIN", "NXDOMAIN", "NOERROR")
        ]
        assert a(ask, "hub.example", "TXT")[:2] == ("NOERROR", [])
        assert a(ask, "hub.example", "ANY")[0] == "REFUSED"
        eventually(lambda: {"cdn.example", "x.hub.example"} <= {block["name"] for block in running.blocks()})
        numbers = count()

        def is_told() -> bool:
            """Who asked is looked for while he waits, and not always: 50 ms at most, and after a pause."""
            assert a(ask, f"n{next(numbers)}.example")[0] == "NXDOMAIN"
            return any(block["process"]["pid"] for block in running.blocks() if block["reason"] == "name")

        eventually(is_told)


def test_private_addresses(running: Running) -> None:
    running.rules("a", "[{to: private.example}]")
    running.rules("b", "[{to: private.example, private: true}]")
    running.up()
    with running.actor("a") as a, running.actor("b") as b:
        assert a(ask, "private.example")[:2] == ("NOERROR", [])
        assert b(ask, "private.example")[:2] == ("NOERROR", ["10.0.0.7"])


def test_the_rule_goes(running: Running, lab: Lab) -> None:
    with recorded(lab):
        running.rules("a", "[{to: hub.example}, {to: cdn.example, ports: [443]}]")
        running.up()
        with running.actor("a") as a:
            a(ask, "hub.example")
            assert a(connect, HUB[0]) == "connected"
            running.rules("a", "[{to: cdn.example, ports: [443]}]")
            running.ask("apply")
            assert a(connect, HUB[0]) == "ConnectionRefusedError"


def test_the_daemon_is_killed_and_comes_back(running: Running, lab: Lab) -> None:
    with recorded(lab):
        running.rules("a", RULES)
        running.up()
        with running.actor("a") as a:
            a(ask, "hub.example")
            running.stop(signal.SIGKILL)
            assert a(connect, HUB[0]) == "connected"
            for n, tcp in product((0, 1), (False, True)):
                rcode, _, _, seconds = a(ask, "hub.example", "A", BLIND[n], tcp)
                assert (rcode, seconds < AT_ONCE) == ("SERVFAIL", True), "its resolver says so, for some seconds"
            eventually(lambda: running.asker(_resolvers, running.lab.cgroup) == [], timeout=THERE + 3)
            for n, tcp in product((0, 1), (False, True)):
                assert a(refused_after, n, tcp) < AT_ONCE
            running.up()
            assert a(connect, HUB[0]) == "connected"
            assert a(ask, "hub.example")[0] == "NOERROR"


def test_a_daemon_that_stops_lets_look_ups_fail_at_once(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    with running.actor("a") as a:
        assert a(ask, "hub.example")[0] == "NOERROR"
        running.stop()
        assert running.asker(_resolvers, running.lab.cgroup) == []
        for n, tcp in product((0, 1), (False, True)):
            assert a(refused_after, n, tcp) < AT_ONCE


def test_the_resolver_is_killed(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    with running.actor("a") as a:
        a(ask, "hub.example")
        before = running.asker(_resolvers, running.lab.cgroup)
        assert len(before) == 1
        running.asker(_kill, before[0])
        eventually(lambda: running.asker(_resolvers, running.lab.cgroup) not in ([], before))
        assert a(ask, "hub.example")[0] == "NOERROR"


def _resolvers(tree: Any) -> list[int]:
    return [int(pid) for pid in (tree / "penstock.slice/resolver/cgroup.procs").read_text().split()]


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_without_rules_by_name_there_is_no_resolver(running: Running) -> None:
    running.rules("a", RULES)
    running.up()
    assert running.asker(_resolvers, running.lab.cgroup)
    running.rules("a")
    running.ask("apply")
    eventually(lambda: running.asker(_resolvers, running.lab.cgroup) == [])
    assert "lookups" not in running.ruleset()
    running.rules("a", RULES)
    running.ask("apply")
    with running.actor("a") as a:
        assert a(ask, "hub.example")[0] == "NOERROR"


def test_upstreams_do_not_answer(running: Running, server: subprocess.Popen[Any]) -> None:
    running.rules("a", RULES)
    running.up()
    with running.actor("a") as a:
        assert a(ask, "hub.example")[0] == "NOERROR"
        server.kill()
        server.wait()
        assert a(ask, "hub.example", timeout=8)[0] == "SERVFAIL"


def test_where_nothing_is_denied_look_ups_do_not_fail_with_us(running: Running) -> None:
    """Observed: the resolver answers whatever is asked; and when it is dead, whoever was asked answers again."""
    running.rules("a", RULES, mode="observe")
    running.rules("b", RULES)
    running.up()
    with running.actor("a") as a, running.actor("b") as b:
        assert a(ask, "cdn.example")[:2] == ("NOERROR", [HUB[0]])
        assert b(ask, "cdn.example", at=SERVER[0])[0] == "NXDOMAIN"
        eventually(lambda: any(block["verdict"] == "would-deny" for block in running.blocks()))
        running.stop(signal.SIGKILL)
        eventually(lambda: a(answers, SERVER[0]), timeout=10)
        with pytest.raises(PermissionError):
            b(ask, "hub.example", at=SERVER[0], timeout=1)
        running.up()
        eventually(lambda: a(ask, "hub.example")[1] == [HUB[0]])
