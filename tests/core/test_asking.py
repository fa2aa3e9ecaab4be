"""Questions as they are typed, and answers about more than one connection."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from penstock.core.asking import Answer, BadQuery, incoming, looked_up, outgoing, reply
from penstock.core.names import BadName
from penstock.core.parse import parse
from penstock.core.policy import (
    AddressPeer,
    AnyPeer,
    Direction,
    NamePeer,
    NetworkPeer,
    Peer,
    Plane,
    PlanePeer,
    Policy,
    WorkloadPeer,
)
from penstock.core.verdict import Reason

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def by_address(answer: Answer) -> list[bool | None]:
    """Of each connection, whether the sets of addresses must hold it."""
    return [one.by_address for one in answer.in_sets]


def address(text: str) -> AddressPeer:
    return AddressPeer(ip_address(text))


@pytest.mark.parametrize(
    ("words", "peer", "protocol", "port"),
    [
        (["10.0.0.5:443"], address("10.0.0.5"), "tcp", 443),
        (["[2001:db8::5]:53/udp"], address("2001:db8::5"), "udp", 53),
        (["10.0.0.5", "icmp"], address("10.0.0.5"), "icmp", None),
        (["[::1]", "icmp"], address("::1"), "icmp", None),
        (["2001:db8::5", "icmp"], address("2001:db8::5"), "icmp", None),
        (["A.Example.org:443"], NamePeer("a.example.org"), "tcp", 443),
    ],
)
def test_outgoing(words: list[str], peer: Peer, protocol: str, port: int | None) -> None:
    found = outgoing(words)
    assert (found.direction, found.peer, found.protocol, found.port) == (Direction.OUT, peer, protocol, port)


@pytest.mark.parametrize(
    ("source", "peer"),
    [
        ("10.0.0.5", address("10.0.0.5")),
        ("clients", NetworkPeer("clients")),
        ("any", AnyPeer()),
        ("plane:admin", PlanePeer(Plane.ADMIN)),
        ("workload:w", WorkloadPeer("w")),
    ],
)
def test_incoming(source: str, peer: Peer) -> None:
    found = incoming(source, ["8000/udp"])
    assert (found.direction, found.peer, found.protocol, found.port) == (Direction.IN, peer, "udp", 8000)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("https://x.example:443", "x.example:443"),
        ("https://x.example", "x.example:443"),
        ("HTTP://me@x.example/a:1", "x.example:80"),
        ("https://[2001:db8::5]/", "[2001:db8::5]:443"),
        ("postgres://x.example", "x.example:PORT"),
        ("https://:443", "example.org:443"),
    ],
)
def test_a_url_is_told_from_an_address(text: str, instead: str) -> None:
    with pytest.raises(BadQuery, match="is a URL") as caught:
        outgoing([text])
    assert caught.value.hint == f"write the name and the port alone: {instead}"


@pytest.mark.parametrize(
    "words", [[], [""], [":"], ["icmp"], ["a"], [":443"], ["[]:443"], ["10.0.0.1:"], ["any:443"], ["\x1b:1"]]
)
def test_no_question(words: list[str]) -> None:
    with pytest.raises(BadQuery) as caught:
        outgoing(words)
    assert caught.value.hint
    assert str(caught.value).isprintable()


def policy(mode: str = "enforce") -> Policy:
    text = f"""\
version: 1
workload: w
mode: {mode}
egress: []
ingress:
  - {{from: 10.0.0.0/8, ports: [80], except: 10.9.0.0/16}}
"""
    found = parse({"rules.d/w.yaml": text.encode()}).policy
    assert found
    return found


def test_all_of_a_network_or_some_of_it() -> None:
    whole = reply(policy(), NOW, "w", incoming("10.1.0.0/16", ["80"]))
    assert whole
    assert whole.allow is True
    assert whole.verdict.reason is Reason.RULE
    some = reply(policy(), NOW, "w", incoming("10.0.0.0/8", ["80"]))
    assert some
    assert some.allow is None
    assert some.allowed
    assert some.denied
    assert str(some.allowed[0].remote) == "10.0.0.0"
    assert str(some.denied[0].remote) == "10.9.0.0"
    assert some.verdict.reason is Reason.EXCEPTED


def egress(rules: str) -> Policy:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: [{rules}]\ningress: []\n"
    found = parse({"rules.d/w.yaml": text.encode()}).policy
    assert found
    return found


@pytest.mark.parametrize(
    ("rules", "allow", "reason"),
    [
        ("{to: any, ports: [443, 53/udp]}", True, Reason.RULE),
        ("{to: 203.0.113.0/24, ports: [443]}, {to: 198.51.100.10, ports: [53/udp]}", None, Reason.DEPENDS),
        ("{to: 198.51.100.10, ports: [53/udp]}", False, Reason.NO_RULE),
        ("", False, Reason.NO_RULES),
        ("{to: any, ports: [443]}, {to: other.example}", False, Reason.NO_RULE),
    ],
)
def test_a_name_where_others_answer_and_where_we_do(rules: str, allow: bool | None, reason: Reason) -> None:
    found = reply(egress(rules), NOW, "w", outgoing(["hub.example:443"]), {})
    assert found
    assert (found.allow, found.verdict.reason, found.by_interface) == (allow, reason, False)
    assert (found.in_sets, found.in_chains) == ((), ())


@pytest.mark.parametrize(
    ("ports", "asked"),
    [
        ("[443]", "a.w.example:443"),
        ("[5432]", "a.w.example:5432"),
        ("[any]", "a.w.example:443"),
        ("[53/udp]", "a.w.example:53/udp"),
        ("[2375-2400]", "a.w.example:2377"),
        ("[icmp]", "a.w.example icmp"),
    ],
)
def test_a_look_up_is_for_a_port_that_a_rule_of_its_name_opens(ports: str, asked: str) -> None:
    found = egress(f"{{to: '*.w.example', ports: {ports}}}, {{to: other.example, ports: [22]}}")
    sentence = looked_up(found, NOW, "w", "A.w.example.")
    assert (sentence.text, sentence.peer) == (asked, NamePeer("a.w.example"))
    answer = reply(found, NOW, "w", sentence)
    assert answer
    assert answer.allow
    for workload, name in (("w", "b.example"), ("gone", "a.w.example")):
        assert looked_up(found, NOW, workload, name).text == f"{name}:443"


@pytest.mark.parametrize("name", ["db", "clients", "10.0.0.1", "a\x1b.example", "a..b", ""])
def test_a_name_that_no_rule_can_have(name: str) -> None:
    with pytest.raises(BadName):
        looked_up(egress(""), NOW, "w", name)


def test_the_mode_is_not_in_the_sets() -> None:
    found = reply(policy("lock"), NOW, "w", incoming("10.1.2.3", ["80"]))
    assert found
    assert (found.allow, found.verdict.reason) == (False, Reason.LOCKED)
    assert by_address(found) == [True]


@pytest.mark.parametrize(
    ("source", "asked", "held"),
    [
        ("host", "host", False),
        ("host", "127.0.0.1", False),
        ("workload:x", "workload:x", False),
        ("[host, '127.0.0.1', '::1']", "host", True),
    ],
)
def test_who_is_on_this_host_is_in_no_set_of_addresses(source: str, asked: str, held: bool) -> None:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: []\ningress: [{{from: {source}, ports: [80]}}]\n"
    egress = b"[{to: 'workload:w', ports: [80]}]"
    other = b"version: 1\nworkload: x\nmode: enforce\negress: " + egress + b"\ningress: []\n"
    found = parse({"rules.d/w.yaml": text.encode(), "rules.d/x.yaml": other}).policy
    assert found
    answer = reply(found, NOW, "w", incoming(asked, ["80"]))
    assert answer
    assert answer.allow
    assert set(by_address(answer)) == {held}
    assert all(one.opened for one in answer.in_chains)
    assert {one.far for one in answer.in_chains if one.connection.workload == "w"} == {
        "workload:x" if asked == "workload:x" else "host"
    }


def test_a_workload_at_the_far_end_has_a_say() -> None:
    def ask(egress: str, ingress: str, mode: str = "enforce") -> tuple[tuple[bool | None, str], ...]:
        texts = [
            f"version: 1\nworkload: w\nmode: {mode}\negress: []\ningress: [{ingress}]\n",
            f"version: 1\nworkload: x\nmode: {mode}\negress: [{egress}]\ningress: []\n",
        ]
        found = parse({f"rules.d/{n}.yaml": text.encode() for n, text in enumerate(texts)}).policy
        assert found
        into = reply(found, NOW, "w", incoming("workload:x", ["80"]))
        out = reply(found, NOW, "x", outgoing(["workload:w:80"]))
        assert into
        assert out
        return (into.allow, into.verdict.text), (out.allow, out.verdict.text)

    to, from_ = "{to: 'workload:w', ports: [80]}", "{from: 'workload:x', ports: [80]}"
    assert [allow for allow, _ in ask(to, from_)] == [True, True]
    (into, why), (out, _) = ask("", from_)
    assert (into, out) == (False, False)
    assert why.startswith("its own rules allow it; x may not call it: ")
    (into, _), (out, why) = ask(to, "")
    assert (into, out) == (False, False)
    assert why.startswith("its own rules allow it; w does not let it in: ")
    assert [allow for allow, _ in ask("", from_, "observe")] == [True, False], "who is watched is not held back"


LAN = b"version: 1\nnetworks: {lan: {interface: eno2}, net: {cidr: 10.0.0.0/8}}\n"


def by_interface(egress: str = "[]", ingress: str = "[]") -> Policy:
    text = f"version: 1\nworkload: w\nmode: enforce\negress: {egress}\ningress: {ingress}\n"
    found = parse({"rules.d/w.yaml": text.encode(), "penstock.yaml": LAN}).policy
    assert found
    return found


def test_an_address_does_not_tell_by_which_interface() -> None:
    policy = by_interface("[{to: lan, ports: [80]}]", "[{from: lan, ports: [80]}]")
    for sentence in (incoming("10.1.1.1", ["80"]), outgoing(["10.1.1.1:80"])):
        found = reply(policy, NOW, "w", sentence)
        assert found
        assert (found.allow, found.by_interface) == (None, True)
        assert found.allowed
        assert found.denied
        assert (found.allowed[0].interface, found.denied[0].interface) == ("eno2", "")
        assert [(one.far, one.opened) for one in found.in_chains] == [("interface:eno2", True)]
        assert by_address(found) == [False]


@pytest.mark.parametrize("port", ["80", "81"])
def test_a_network_by_its_name_is_one_answer(port: str) -> None:
    policy = by_interface("[{to: lan, ports: [80]}]", "[{from: lan, ports: [80]}]")
    into = reply(policy, NOW, "w", incoming("lan", [port]))
    assert into
    assert into.allow is (port == "80")
    out = reply(policy, NOW, "w", outgoing([f"lan:{port}"]))
    assert out
    # Metadata and link-local addresses stay closed in it.
    assert out.allow is (None if port == "80" else False)
    for found in (into, out):
        assert {one.opened for one in found.in_chains} == {port == "80"}
        assert set(by_address(found)) == {False}


@pytest.mark.parametrize(
    ("source", "allow"),
    [("127.0.0.1", False), ("::1", False), ("192.0.2.1", False), ("net", True), ("10.1.1.1", True)],
)
def test_what_does_not_depend_on_it_is_said_plainly(source: str, allow: bool) -> None:
    """What comes over loopback comes over nothing else; and what another rule allows is allowed anyway."""
    policy = by_interface(ingress="[{from: lan, ports: [80]}, {from: net, ports: [80]}]")
    own = frozenset({ip_address("192.0.2.1")})
    found = reply(policy, NOW, "w", incoming(source, ["80"]), own=own)
    assert found
    assert found.allow is allow


def test_about_nothing() -> None:
    assert reply(policy(), NOW, "w", incoming("plane:admin", ["80"])) is None


def test_a_name_that_leads_to_the_address_now_counts_and_is_in_no_set_of_addresses() -> None:
    text = 'version: 1\nworkload: w\nmode: enforce\negress: [{to: "*.hf.co"}]\ningress: []\n'
    named = parse({"rules.d/w.yaml": text.encode()}).policy
    assert named
    far = ip_address("198.51.100.11")
    for learned, allow in (({far: ["cdn.hf.co"]}, True), ({far: ["other.example"]}, False), ({}, False)):
        answer = reply(named, NOW, "w", outgoing([f"{far}:443"]), learned)
        assert answer
        assert answer.allow is allow
        assert by_address(answer) == [False]
        assert [one.by_name for one in answer.in_sets] == [allow]
    unknown = reply(named, NOW, "w", outgoing([f"{far}:443"]))
    assert unknown
    assert [one.by_name for one in unknown.in_sets] == [None]


def test_where_a_name_is_the_sets_of_learned_addresses_must_hold() -> None:
    """Not what `except` leaves out, nor an address of this host; nothing of a name that no rule has."""
    rules = "[{to: a.example, except: 198.51.100.0/25}, {to: a.example, ports: [80]}]"
    text = f"version: 1\nworkload: w\nmode: enforce\negress: {rules}\ningress: []\n"
    named = parse({"rules.d/w.yaml": text.encode()}).policy
    assert named
    low, high, own = map(ip_address, ("198.51.100.11", "198.51.100.200", "192.0.2.10"))

    def must_hold(question: str) -> list[object]:
        learned = {address: [question.partition(":")[0]] for address in (low, high, own)}
        answer = reply(named, NOW, "w", outgoing([question]), learned, own=[own])
        assert answer
        assert {(one.by_address, one.by_name) for one in answer.in_sets} <= {(None, True)}
        return [one.connection.remote for one in answer.in_sets]

    assert must_hold("a.example:443") == [high]
    assert must_hold("a.example:80") == [low, high]
    assert must_hold("b.example:443") == must_hold("a.example:81") == []


def test_a_locked_workload_has_no_learned_addresses() -> None:
    text = b"version: 1\nworkload: w\nmode: lock\negress: [{to: a.example}]\ningress: []\n"
    named, far = parse({"rules.d/w.yaml": text}).policy, ip_address("198.51.100.11")
    assert named
    answer = reply(named, NOW, "w", outgoing([f"{far}:443"]), {far: ["a.example"]})
    assert answer
    assert [one.by_name for one in answer.in_sets] == [False]


@pytest.mark.parametrize(
    ("what", "own", "expected"),
    [("127.0.0.1:22", (), False), ("192.0.2.10:22", ("192.0.2.10",), False), ("192.0.2.10:22", (), True)],
)
def test_admin_ports_of_this_host_are_closed_by_a_chain(what: str, own: tuple[str, ...], expected: bool) -> None:
    text = b"version: 1\nworkload: w\nmode: enforce\negress: [{to: any, ports: [any]}]\ningress: []\n"
    host = b"version: 1\nhost: {admin_ports: [22]}\n"
    policy = parse({"rules.d/w.yaml": text, "penstock.yaml": host}).policy
    assert policy
    answer = reply(policy, NOW, "w", outgoing([what]), own=frozenset(map(ip_address, own)))
    assert answer
    assert answer.allow is expected
    assert (answer.verdict.reason is Reason.ADMIN_PORT) is not expected
    assert by_address(answer) == [True], "the kernel's set has it all the same"


def test_a_network_is_asked_for_at_the_edges_of_networks_of_clients() -> None:
    text = b"version: 1\nworkload: w\nmode: enforce\negress: []\ningress: [{from: any, ports: [22]}]\n"
    host = b"version: 1\nnetworks: {c: {cidr: 10.1.2.0/24, plane: inference}}\nhost: {admin_ports: [22]}\n"
    policy = parse({"rules.d/w.yaml": text, "penstock.yaml": host}).policy
    answer = reply(policy, NOW, "w", incoming("10.0.0.0/8", ["22"])) if policy else None
    assert answer
    assert answer.allow is None
    assert answer.denied
    assert str(answer.denied[0].remote) == "10.1.2.0"
    assert by_address(answer).count(False) == 1
