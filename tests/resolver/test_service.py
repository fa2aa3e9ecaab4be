"""The way of a question: what is answered, when, and what is not."""

from __future__ import annotations

import itertools
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from penstock.core import dns_codes as code
from penstock.core import resolver_wire as wire
from penstock.core.dns import build_query
from penstock.core.dns_answers import Answer
from penstock.core.dns_replies import rebuild
from penstock.core.resolver_wire import NameRuleText
from penstock.resolver import service
from penstock.resolver.clients import Caller
from penstock.resolver.link import Link
from penstock.resolver.loop import Loop
from penstock.resolver.service import Service
from penstock.resolver.troubles import Troubles
from penstock.resolver.upstream import MAX_STREAMS, Done, Question, Share, Upstreams

from .running import (
    AS_IT_IS,
    Answers,
    Resolver,
    Upstream,
    addresses,
    answering,
    ede,
    eventually,
    rcode,
    read_message,
    records,
    upstream,
)

HUB = answering(
    hub="192.0.2.1 2001:db8::1",
    inside="10.0.0.1 192.0.2.2 fd00::1 2001:db8::2",
    private="10.0.0.1 fd00::1",
    metadata="169.254.169.254 fd00:ec2::254",
)
RULES = ("hub.example", "inside.example", "private.example", "metadata.example", "*.cdn.example")


@contextmanager
def asking(
    answer: Answers = HUB,
    *rules: str | NameRuleText,
    mode: str = "enforce",
    there: int = 0,
    constants: Mapping[str, float] = AS_IT_IS,
) -> Iterator[tuple[Resolver, Upstream]]:
    with upstream(answer) as made, Resolver(there=there, constants=constants) as resolver:
        resolver.configure(*(rules or RULES), upstreams=[made], mode=mode)
        yield resolver, made


def learned(resolver: Resolver) -> list[tuple[str, list[str]]]:
    return [(learn.name, [str(a) for a, _ in learn.addresses]) for learn in resolver.daemon.of(wire.Learn)]


PATIENT = {"upstream.TRY": 9.0}
"""For tests that count what an upstream is asked, and let it answer late."""


def _alone(answer: bytes | Sequence[bytes] | None) -> bytes:
    assert isinstance(answer, bytes)
    return answer


class Client:
    """Asks without waiting."""

    def __init__(self, resolver: Resolver, *questions: tuple[str, str], start: int = 0) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.settimeout(10)
        self.sock.connect(("127.0.0.1", resolver.ports["w"]))
        for number, (name, kind) in enumerate(questions, start):
            self.sock.send(dns.message.make_query(name, kind, id=number, use_edns=0).to_wire())

    def replies(self, count: int) -> list[dns.message.Message]:
        return [dns.message.from_wire(self.sock.recv(65535)) for _ in range(count)]

    def waits(self) -> bool:
        """Nothing has come, though what was asked later by somebody else has been answered."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(65535)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(10)
        return False


# --- learn before answering ---


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_an_answer_waits_until_it_is_learned(kind: str) -> None:
    with asking() as (resolver, _):
        resolver.daemon.settle = lambda message: None
        client = Client(resolver, ("hub.example", kind))
        (learn,) = resolver.daemon.waits_for(wire.Learn)
        address = {"A": "192.0.2.1", "AAAA": "2001:db8::1"}[kind]
        assert learn == wire.Learn(learn.id, 1, "w", "hub.example", ((ip_address(address), 60),))
        assert rcode(resolver.ask("evil.example")) == "NXDOMAIN"
        assert client.waits()
        resolver.daemon.say(wire.Settled((learn.id,), True))
        assert addresses(client.replies(1)[0]) == [address]


def test_what_cannot_be_learned_fails() -> None:
    with asking() as (resolver, _):
        resolver.daemon.settle = lambda message: False
        reply = resolver.ask("hub.example")
        assert (rcode(reply), ede(reply), addresses(reply)) == ("SERVFAIL", [14], [])
        resolver.daemon.settle = lambda message: True
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]  # a failure is not remembered


def test_a_daemon_that_says_nothing_is_not_waited_for_long() -> None:
    learning = 1.0
    with asking(constants={"service.LEARNING": learning}) as (resolver, _):
        resolver.daemon.settle = lambda message: None
        began = time.monotonic()
        reply = resolver.ask("hub.example")
        assert learning <= time.monotonic() - began < learning + 1
        assert (rcode(reply), ede(reply)) == ("SERVFAIL", [14])
        for learn in resolver.daemon.of(wire.Learn):  # too late, and twice
            resolver.daemon.say(wire.Settled((learn.id, learn.id, 999), True))
        resolver.daemon.settle = lambda message: True
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]


def test_what_was_settled_just_now_is_not_learned_again() -> None:
    with asking() as (resolver, made):
        for _ in range(3):
            assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert len(learned(resolver)) == 1
        made.answer = answering(hub="192.0.2.1 192.0.2.9")
        assert len(addresses(resolver.ask("hub.example"))) == 2
        assert len(learned(resolver)) == 2
        resolver.configure(*RULES)
        assert len(addresses(resolver.ask("hub.example"))) == 2
        assert [learn.generation for learn in resolver.daemon.of(wire.Learn)] == [1, 1, 2]


def test_many_at_once_are_learned_in_few_writes() -> None:
    count = 200
    names = [f"n{number}.example" for number in range(count)]
    answers: Answers = lambda q, *_: records(q, f"{q.question[0].name} A 192.0.2.1").to_wire()  # noqa: E731
    with asking(lambda *_: None, *names, constants=PATIENT) as (resolver, made):
        reads = []
        settle = resolver.daemon._answer
        resolver.daemon._answer = lambda messages: (reads.append(len(messages)), settle(messages))[1]  # type: ignore[method-assign, func-returns-value]
        client = Client(resolver, *((name, "A") for name in names))
        eventually(lambda: len(made.askers) == count)
        resolver.process.send_signal(signal.SIGSTOP)  # so that it finds all the answers at once
        state = Path(f"/proc/{resolver.process.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        for question, who in zip(made.asked, made.askers, strict=True):
            made.udp.sendto(_alone(answers(question, made, who)), who)
        resolver.process.send_signal(signal.SIGCONT)
        assert all(addresses(reply) == ["192.0.2.1"] for reply in client.replies(count))
        assert sum(reads) == count
        assert len(reads) < count / 20


def test_only_the_asked_name_is_learned_with_what_its_chain_ends_in() -> None:
    texts = (
        "hub.example. CNAME a.cdn.test.", "a.cdn.test. CNAME b.cdn.test.", "b.cdn.test. A 192.0.2.7",
        "evil.test. A 192.0.2.66", "hub.example. A 192.0.2.67", "x.cdn.test. CNAME hub.example.",
    )  # fmt: skip

    def answer(question: dns.message.Message, *_: Any) -> bytes:
        reply = records(question, *texts)
        reply.additional.append(records(question, "evil.test. A 192.0.2.68").answer[0])
        return reply.to_wire()

    with asking(answer) as (resolver, _):
        reply = resolver.ask("hub.example")
        assert addresses(reply) == ["192.0.2.7"]
        assert [rrset.name.to_text() for rrset in reply.answer] == ["hub.example.", "a.cdn.test.", "b.cdn.test."]
        assert reply.additional == []
        assert learned(resolver) == [("hub.example", ["192.0.2.7"])]


@pytest.mark.parametrize("steps", [2, 9])
def test_chains_that_lead_nowhere_fail(steps: int) -> None:
    """A loop of two, and one that is too long: that is a bound of ours, and told."""

    def answer(question: dns.message.Message, *_: Any) -> bytes:
        names = ["hub.example.", *(f"n{number}.test." for number in range(1, steps)), "hub.example."]
        if steps > 2:
            names[-1] = "end.test."
        texts = [f"{a} CNAME {b}" for a, b in itertools.pairwise(names)]
        return records(question, *texts, "end.test. A 192.0.2.1").to_wire()

    with asking(answer) as (resolver, _):
        reply = resolver.ask("hub.example")
        assert (rcode(reply), ede(reply), addresses(reply)) == ("SERVFAIL", [24], [])
        resolver.ask("evil.example")
        resolver.daemon.waits_for(wire.Refused)  # and all that was said before it
        told = [(t.code, t.workload) for t in resolver.daemon.of(wire.Trouble)]
        assert told == ([("chain", "w")] if steps > 2 else [])


def test_more_addresses_than_are_learned_are_not_given_either() -> None:
    answers: Answers = lambda q, *_: records(  # noqa: E731
        q, *(f"hub.example. A 192.0.{n // 250}.{n % 250}" for n in range(512, 600))
    ).to_wire(max_size=65535)
    with asking(answers) as (resolver, _):
        reply = resolver.ask("hub.example", tcp=True)
        assert len(addresses(reply)) == 64
        assert sorted(learned(resolver)[0][1]) == addresses(reply)
        assert resolver.daemon.waits_for(wire.Trouble)[0].code == "addresses"


# --- what is refused ---


def test_names_outside_the_rules_do_not_exist() -> None:
    with asking() as (resolver, made):
        reply = resolver.ask("EVIL.example")
        assert (rcode(reply), ede(reply)) == ("NXDOMAIN", [15])
        assert reply.question[0].name.to_text() == "EVIL.example."
        assert made.asked == []
        (refused,) = resolver.daemon.waits_for(wire.Refused)
        assert (refused.name, refused.qtype, refused.reason, refused.protocol) == (
            "evil.example",
            "A",
            "name",
            "udp",
        )
        assert str(refused.client[0]) == "127.0.0.1"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("ANY", "REFUSED"), ("NULL", "REFUSED"), ("TXT", "NOERROR"), ("MX", "NOERROR"), ("PTR", "NOERROR"),
     ("TYPE65280", "NOERROR"), ("AXFR", "REFUSED")],
)  # fmt: skip
def test_types_that_connecting_does_not_need_are_not_given(kind: str, code: str) -> None:
    with asking() as (resolver, made):
        question = dns.message.make_query("hub.example", "A", use_edns=0)
        question.question[0].rdtype = dns.rdatatype.from_text(kind)
        reply = dns.message.from_wire(_raw(resolver, question.to_wire()))
        assert (rcode(reply), ede(reply), reply.answer) == (code, [18], [])
        assert made.asked == []
        (refused,) = resolver.daemon.waits_for(wire.Refused)
        assert (refused.qtype, refused.reason) == (kind, "type")


def _raw(resolver: Resolver, data: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", resolver.ports["w"]))
        sock.send(data)
        return sock.recv(65535)


@pytest.mark.parametrize("kind", ["HTTPS", "SVCB"])
def test_hints_of_addresses_are_taken_out(kind: str) -> None:
    text = f"hub.example. {kind} 1 . alpn=h2 port=443 ipv4hint=192.0.2.66 ipv6hint=2001:db8::66"
    with asking(lambda question, *_: records(question, text).to_wire()) as (resolver, _):
        reply = resolver.ask("hub.example", kind)
        assert reply.answer[0][0].to_text() == '1 . alpn="h2" port="443"'
        assert learned(resolver) == []


def test_a_name_that_points_inside_is_refused() -> None:
    with asking() as (resolver, _):
        for kind, address in (("A", "192.0.2.2"), ("AAAA", "2001:db8::2")):
            assert addresses(resolver.ask("inside.example", kind)) == [address]
        for name in ("private.example", "metadata.example"):
            for kind in ("A", "AAAA"):
                reply = resolver.ask(name, kind)
                assert (rcode(reply), ede(reply), reply.answer) == ("NOERROR", [17], [])
        assert learned(resolver) == [("inside.example", ["192.0.2.2"]), ("inside.example", ["2001:db8::2"])]
        told = {(refused.name, refused.reason) for refused in resolver.daemon.waits_for(wire.Refused, 2)}
        assert told == {("private.example", "private-answer"), ("metadata.example", "unfit-answer")}


def test_a_rule_may_take_private_addresses_and_leave_others_out() -> None:
    rules = (
        NameRuleText("private.example", True),
        NameRuleText("metadata.example", True),
        NameRuleText("hub.example", False, (ip_network("192.0.2.0/24"),)),
    )
    with asking(HUB, *rules) as (resolver, _):
        assert addresses(resolver.ask("private.example")) == ["10.0.0.1"]
        assert addresses(resolver.ask("private.example", "AAAA")) == ["fd00::1"]
        assert ede(resolver.ask("metadata.example")) == [17]
        assert ede(resolver.ask("hub.example")) == [17]
        assert addresses(resolver.ask("hub.example", "AAAA")) == ["2001:db8::1"]


def test_a_name_that_does_not_exist_says_so_with_its_soa() -> None:
    def answer(question: dns.message.Message, *_: Any) -> bytes:
        reply = records(question)
        reply.set_rcode(dns.rcode.NXDOMAIN)
        reply.authority.append(records(question, "example. SOA ns. host. 1 2 3 4 5").answer[0])
        return reply.to_wire()

    with asking(answer) as (resolver, _):
        reply = resolver.ask("x.cdn.example")
        assert (rcode(reply), ede(reply)) == ("NXDOMAIN", [])
        assert reply.authority[0].rdtype == dns.rdatatype.SOA
        resolver.ask("evil.example")
        assert [refused.name for refused in resolver.daemon.waits_for(wire.Refused)] == ["evil.example"]


# --- modes and configurations ---


def test_one_who_is_locked_may_ask_nothing() -> None:
    with asking(HUB, mode="lock") as (resolver, made):
        reply = resolver.ask("hub.example")
        assert (rcode(reply), ede(reply)) == ("NXDOMAIN", [18])
        assert resolver.daemon.waits_for(wire.Refused)[0].reason == "locked"
        assert made.asked == []


def test_one_who_is_observed_gets_everything_and_it_is_told() -> None:
    names = answering(hub="192.0.2.1", evil="192.0.2.66", private="10.0.0.1 192.0.2.5")
    with asking(names, mode="observe") as (resolver, _):
        resolver.daemon.settle = lambda message: False  # which is not its fault
        assert addresses(resolver.ask("evil.example")) == ["192.0.2.66"]
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert addresses(resolver.ask("private.example")) == ["10.0.0.1", "192.0.2.5"]
        assert rcode(resolver.ask("none.example", "TXT")) == "NXDOMAIN"
        assert resolver.daemon.waits_for(wire.Observed, 3) == [
            wire.Observed("w", "evil.example", (ip_address("192.0.2.66"),)),
            wire.Observed("w", "private.example", (ip_address("10.0.0.1"),)),
            wire.Observed("w", "none.example", ()),
        ]
        assert learned(resolver) == [("hub.example", ["192.0.2.1"]), ("private.example", ["192.0.2.5"])]


class Alone:
    """The service in this process, with a link and an upstream that are made up, and a client who is observed."""

    protocol = "udp"

    def __init__(self) -> None:
        self.congested = False
        self.said: list[wire.FromResolver] = []
        self.replies: list[bytes] = []
        self.asked: list[tuple[Question, Done]] = []
        self.loop = Loop(self.failed)
        troubles = Troubles(self.say)
        self.service = Service(self.loop, cast(Link, self), cast(Upstreams, self), troubles)
        self.service.configure(wire.Configure(1, (), (), (wire.Names("w", "observe"),)))

    def failed(self, error: Exception) -> None:
        raise error

    def say(self, message: wire.FromResolver) -> None:
        self.said.append(message)

    def configure(self, servers: object) -> None:
        """Whatever they are."""

    def ask(self, question: Question, done: Done, share: Share) -> None:
        self.asked.append((question, done))

    def reply(self, address: Any, data: bytes) -> None:
        self.replies.append(data)

    def questions(self, *names: str) -> None:
        """Ask them all, and let the upstream answer then."""
        before = len(self.replies)
        for number, name in enumerate(names):
            caller = Caller(self, ("127.0.0.1", 4000), 4096)
            assert self.service.take(self.service.of("w"), caller, build_query(number, name, code.A))
        while self.asked:
            self.asked.pop(0)[1](Answer(code.NOERROR, 0x8180, (), ()))
        assert len(self.replies) - before == len(names)

    def told(self) -> list[wire.FromResolver]:
        """What was said since."""
        said, self.said = self.said, []
        return said


def overflow(count: int) -> wire.Refused:
    client = ip_address("127.0.0.1"), 4000
    return wire.Refused(0, "w", "", "", "overflow", "udp", client, count)


def test_what_is_observed_again_within_a_second_is_counted() -> None:
    alone = Alone()
    alone.questions("a.example", "a.example")  # one look-up
    assert alone.told() == [wire.Observed("w", "a.example", (), 2)]
    alone.questions("a.example", "b.example")
    alone.questions("a.example")
    assert alone.told() == [wire.Observed("w", "b.example", (), 1)]
    alone.service.tick()
    assert alone.told() == [wire.Observed("w", "a.example", (), 2)]
    alone.service.tick()
    assert alone.told() == []
    alone.questions("a.example")
    assert alone.told() == [wire.Observed("w", "a.example", ())]


def test_more_names_than_are_told_of_one_who_is_observed_are_counted() -> None:
    alone = Alone()
    alone.questions(*(f"n{number}.example" for number in range(service.MAX_OBSERVED)))
    assert len(alone.told()) == service.MAX_OBSERVED
    alone.questions("x.example", "y.example", "y.example")
    assert alone.told() == []
    alone.service.tick()
    assert alone.told() == [overflow(3)]
    alone.questions("x.example")
    assert alone.told() == [wire.Observed("w", "x.example", ())]


def test_what_comes_while_the_daemon_does_not_keep_up_is_counted() -> None:
    """What is observed, and what is refused; nothing more is said meanwhile."""
    alone = Alone()
    alone.questions("a.example")
    assert alone.told() == [wire.Observed("w", "a.example", ())]
    alone.congested = True
    alone.questions("a.example", "b.example", "c.example")
    alone.service.configure(wire.Configure(2, (), (), (wire.Names("w", "enforce"),)))
    alone.questions("d.example", "d.example", "e.example")
    alone.service.tick()
    assert alone.told() == []
    alone.congested = False
    alone.service.tick()
    assert alone.told() == [overflow(5), wire.Observed("w", "a.example", ())]


def test_a_question_waits_until_it_is_known_what_may_be_asked() -> None:
    with upstream(HUB) as made, Resolver() as resolver:
        resolver.listen("w")
        client = Client(resolver, ("hub.example", "A"))
        resolver.configure("hub.example", workload="v", upstreams=[made])
        assert addresses(resolver.ask("hub.example", workload="v")) == ["192.0.2.1"]
        assert client.waits()
        resolver.configure("hub.example")
        assert addresses(client.replies(1)[0]) == ["192.0.2.1"]
        resolver.leave_out("w")
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"


def test_what_is_under_way_fails_when_the_daemon_ends() -> None:
    """Upstream or with the daemon; and who asks once more is not told another thing."""
    held: list[tuple[dns.message.Message, Any]] = []

    def answer(question: dns.message.Message, made: Upstream, who: Any) -> bytes | None:
        if question.question[0].name.to_text() != "inside.example.":
            return HUB(question, made, who)  # type: ignore[return-value]
        held.append((question, who))
        return None

    with asking(answer, there=1, constants=PATIENT) as (resolver, made):
        resolver.daemon.settle = lambda message: None
        client = Client(resolver, ("hub.example", "A"), ("inside.example", "A"), ("inside.example", "AAAA"))
        resolver.daemon.waits_for(wire.Learn)
        eventually(lambda: len(held) == 2)
        resolver.link.shutdown(socket.SHUT_RDWR)
        client.sock.settimeout(1)
        replies = client.replies(3)
        assert [(rcode(reply), ede(reply), addresses(reply)) for reply in replies] == [("SERVFAIL", [14], [])] * 3
        assert {reply.id for reply in replies} == {0, 1, 2}
        for question, who in held:
            made.udp.sendto(records(question, "inside.example. A 192.0.2.2").to_wire(), who)
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"
        assert client.waits()


def test_one_who_is_observed_gets_no_answer_without_the_daemon_either() -> None:
    with asking(mode="observe", there=1) as (resolver, _):
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        resolver.link.shutdown(socket.SHUT_RDWR)
        assert rcode(resolver.ask("hub.example")) == "SERVFAIL"


def test_one_workload_opens_nothing_for_another() -> None:
    with asking() as (resolver, _):
        resolver.configure("private.example", workload="v")
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert rcode(resolver.ask("hub.example", workload="v")) == "NXDOMAIN"
        resolver.configure("hub.example", workload="v")
        assert addresses(resolver.ask("hub.example", workload="v")) == ["192.0.2.1"]
        assert [learn.workload for learn in resolver.daemon.of(wire.Learn)] == ["w", "v"]


def test_one_who_was_left_out_and_is_back_with_the_same_rules_is_answered() -> None:
    """As when a lock ends: the daemon says again what it said before."""
    with asking() as (resolver, _):
        resolver.configure("private.example", workload="v")
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        resolver.leave_out("w")
        reply = resolver.ask("inside.example")
        assert (rcode(reply), ede(reply)) == ("SERVFAIL", [14])
        resolver.configure(*RULES)
        # Until it was told, it does not answer; it never did before.
        eventually(lambda: addresses(resolver.ask("hub.example")) == ["192.0.2.1"])


def test_an_answer_that_comes_after_a_change_is_judged_by_what_is_in_force() -> None:
    with asking(lambda *_: None, constants=PATIENT) as (resolver, made):
        client = Client(resolver, ("hub.example", "A"), ("private.example", "A"))
        eventually(lambda: len(made.askers) == 2)
        resolver.configure("hub.example")
        assert rcode(resolver.ask("evil.example")) == "NXDOMAIN"  # it knows
        for question, who in zip(made.asked, made.askers, strict=True):
            made.udp.sendto(_alone(HUB(question, made, who)), who)
        replies = {reply.id: reply for reply in client.replies(2)}
        assert addresses(replies[0]) == ["192.0.2.1"]
        assert rcode(replies[1]) == "NXDOMAIN"
        assert resolver.daemon.of(wire.Learn)[0].generation == 2


def test_a_change_while_something_is_learned_costs_nobody_an_answer() -> None:
    with asking() as (resolver, _):
        changed = threading.Event()

        def settle(message: wire.Learn | wire.Refused) -> bool:
            if isinstance(message, wire.Learn) and message.generation == 1:
                resolver.configure("hub.example", wait=False)  # it was for what is no longer in force
                changed.set()
                return False
            return True

        resolver.daemon.settle = settle
        assert addresses(resolver.ask("hub.example")) == ["192.0.2.1"]
        assert changed.is_set()
        assert [learn.generation for learn in resolver.daemon.of(wire.Learn)] == [1, 2]


def test_new_names_under_a_wildcard_are_bounded() -> None:
    answers: Answers = lambda q, *_: records(q, f"{q.question[0].name} A 192.0.2.1").to_wire()  # noqa: E731
    with asking(answers) as (resolver, made):
        codes = [rcode(resolver.ask(f"n{number}.cdn.example")) for number in range(70)]
        assert codes[:60] == ["NOERROR"] * 60
        assert set(codes[61:]) == {"SERVFAIL"}
        assert len(made.asked) <= 61
        assert addresses(resolver.ask("n1.cdn.example", "A")) == ["192.0.2.1"]
        trouble = resolver.daemon.waits_for(wire.Trouble)[0]
        assert (trouble.code, trouble.workload) == ("rate", "w")
        assert resolver.daemon.waits_for(wire.Refused)[0].reason == "rate"


# --- bounds ---


def test_so_many_of_one_workload_are_under_way_and_no_more() -> None:
    names = [f"n{number}.example" for number in range(service.MAX_WAITING + 50)]

    def answer(question: dns.message.Message, *rest: Any) -> Any:
        return HUB(question, *rest) if question.question[0].name.to_text() == "hub.example." else None

    with asking(answer, *names) as (resolver, made):
        resolver.configure("hub.example", workload="v")
        client = Client(resolver, *((name, "A") for name in names))
        replies = client.replies(50)
        assert {(rcode(reply), *ede(reply)) for reply in replies} == {("SERVFAIL", 14)}
        # Some may be asked again by now.
        eventually(lambda: len({asked.question[0].name for asked in made.asked}) == service.MAX_WAITING)
        trouble = resolver.daemon.waits_for(wire.Trouble)[0]
        assert (trouble.code, trouble.workload) == ("in-flight", "w")
        assert addresses(resolver.ask("hub.example", workload="v")) == ["192.0.2.1"]  # others are served
        rest = client.replies(service.MAX_WAITING)
        assert {(rcode(reply), *ede(reply)) for reply in rest} == {("SERVFAIL", 22)}
        assert client.waits()
        assert addresses(resolver.ask("hub.example", workload="v")) == ["192.0.2.1"]


def test_so_many_of_one_workload_are_under_way_over_tcp() -> None:
    names = [f"n{number}.example" for number in range(MAX_STREAMS + 8)]

    def answer(question: dns.message.Message, *rest: Any) -> Any:
        if question.question[0].name.to_text() == "hub.example.":
            return HUB(question, *rest)
        reply = records(question)
        reply.flags |= dns.flags.TC
        return reply.to_wire()

    with (
        upstream(answer, tcp=lambda *_: None) as made,
        Resolver(constants=PATIENT) as resolver,
    ):
        resolver.configure(*names, upstreams=[made])
        resolver.configure("hub.example", workload="v")
        client = Client(resolver, *((name, "A") for name in names))
        assert {(rcode(reply), *ede(reply)) for reply in client.replies(8)} == {("SERVFAIL", 22)}
        eventually(lambda: made.over_tcp == MAX_STREAMS)
        assert [(t.code, t.workload) for t in resolver.daemon.waits_for(wire.Trouble)] == [("streams", "w")]
        assert addresses(resolver.ask("hub.example", workload="v")) == ["192.0.2.1"]
        assert client.waits()


def test_many_who_ask_the_same_are_bounded_too() -> None:
    count = service.MAX_WAITING + 20
    with asking(lambda *_: None, constants=PATIENT) as (resolver, made):
        client = Client(resolver, *[("hub.example", "A")] * count)
        assert {rcode(reply) for reply in client.replies(20)} == {"SERVFAIL"}
        eventually(lambda: made.askers)
        assert len(made.asked) == 1
        made.udp.sendto(_alone(HUB(made.asked[0], made, None)), made.askers[0])
        assert all(addresses(reply) == ["192.0.2.1"] for reply in client.replies(count - 20))


def test_many_who_ask_the_same_cost_one_answer_and_each_gets_his_own() -> None:
    """One that takes as long as an answer may, which hundreds wait for in different letters, over UDP and TCP."""
    name = "a." * 115 + "cdn.example."
    chain = [name, *(f"{first}{'.z' * 125}." for first in "bcdefghi")]
    texts = [f"{a} CNAME {b}" for a, b in itertools.pairwise(chain)]
    texts += [f"{chain[-1]} A 192.0.2.1", *["q. DNAME ."] * 200]

    def over_tcp(question: dns.message.Message, *_: Any) -> bytes:
        return records(question, *texts).to_wire(max_size=65535)

    def query(number: int) -> bytes:
        asked = "".join(random.Random(number).choice((c, c.upper())) for c in name)
        return dns.message.make_query(asked, "A", id=number, want_dnssec=True, payload=1232).to_wire()

    wires = [query(number) for number in range(300)]
    with (
        upstream(lambda *_: None, tcp=over_tcp) as made,
        Resolver(constants=PATIENT) as resolver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        resolver.configure("*.cdn.example", upstreams=[made])
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        where = "127.0.0.1", resolver.ports["w"]
        udp.settimeout(10)
        udp.connect(where)
        with socket.create_connection(where, timeout=10) as tcp:
            tcp.sendall(b"".join(len(data).to_bytes(2) + data for data in wires[:50]))
            last = dns.message.make_query("evil.example", "A").to_wire()
            tcp.sendall(len(last).to_bytes(2) + last)
            assert read_message(tcp)[:2] == last[:2]  # all before it have been read
            for data in wires[50:]:
                udp.send(data)
            assert rcode(resolver.ask("evil.example")) == "NXDOMAIN"
            eventually(lambda: made.askers)
            began = time.monotonic()
            reply = records(made.asked[0])
            reply.flags |= dns.flags.TC
            made.udp.sendto(reply.to_wire(), made.askers[0])
            whole = {data[:2]: data for data in (read_message(tcp) for _ in range(50))}
            short = {data[:2]: data for data in (udp.recv(4096) for _ in range(250))}
            assert time.monotonic() - began < 5
    asked = slice(12, 12 + len(name) + 5)
    for found, gets in ((whole, (["192.0.2.1"], False)), (short, ([], True))):
        for data in found.values():
            read = dns.message.from_wire(data)
            assert data[asked] == wires[read.id][asked]
            assert (addresses(read), bool(read.flags & dns.flags.TC)) == gets
    assert (len(whole), len(short), len(made.asked)) == (50, 250, 2)


def test_an_answer_is_put_together_once_for_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(service, "rebuild", lambda *arguments: made.append(arguments) or rebuild(*arguments))  # type: ignore[func-returns-value]
    Alone().questions("a.example", "a.example", "a.example", "b.example")
    assert len(made) == 2


def test_dnssec_is_passed_as_long_as_nothing_was_taken_out() -> None:
    signature = "A 8 2 60 20300101000000 20200101000000 1 example. c2lnbmF0dXJl"

    def answer(question: dns.message.Message, *_: Any) -> bytes:
        name = question.question[0].name.to_text()
        inside = ["inside.example. A 10.0.0.1"] if name.startswith("inside") else []
        reply = records(question, f"{name} A 192.0.2.1", *inside, f"{name} RRSIG {signature}")
        reply.flags |= dns.flags.AD
        return reply.to_wire()

    with asking(answer) as (resolver, _):
        reply = resolver.ask("hub.example", want_dnssec=True)
        assert {rrset.rdtype for rrset in reply.answer} == {dns.rdatatype.A, dns.rdatatype.RRSIG}
        assert reply.flags & dns.flags.AD
        reply = resolver.ask("hub.example")
        assert {rrset.rdtype for rrset in reply.answer} == {dns.rdatatype.A}
        assert not reply.flags & dns.flags.AD
        reply = resolver.ask("inside.example", want_dnssec=True)
        assert {rrset.rdtype for rrset in reply.answer} == {dns.rdatatype.A}
        assert not reply.flags & dns.flags.AD
