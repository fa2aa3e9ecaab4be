"""Replies: what a client sees, read back by dnspython."""

from __future__ import annotations

import time
from ipaddress import ip_address
from itertools import pairwise

import dns.edns
import dns.flags
import dns.message
import dns.rrset
import pytest

from penstock.core import dns_codes as code
from penstock.core.dns import Query, build_query, parse_query
from penstock.core.dns_answers import follow, parse_answer
from penstock.core.dns_replies import Content, build_reply, rebuild, reply
from penstock.core.policy import Address

RRSIG = "8 2 5 20300101000000 20260101000000 1 b.example. AAAA"
SOA = "ns.b.example. root.b.example. 1 2 3 4 5"


def ask(name: str = "A.example", qtype: str = "A", edns: bool = False, dnssec: bool = False) -> Query:
    message = dns.message.make_query(name, qtype, use_edns=edns or dnssec, want_dnssec=dnssec, payload=1232)
    return parse_query(message.to_wire())


def everything(address: Address) -> bool:
    return True


def reply_to(
    query: Query,
    answer: str = "",
    authority: str = "",
    *,
    rcode: int = 0,
    flags: int = 0x81A0,
    refused: tuple[str, ...] = (),
    limit: int = 65535,
    ede: int | None = None,
) -> dns.message.Message:
    """What `query` gets when the upstream answered so."""
    asked = build_query(9, query.name, query.qtype, dnssec=query.dnssec)
    message = dns.message.make_response(dns.message.from_wire(asked))
    message.flags = dns.flags.Flag(flags | rcode)
    message.answer = rrsets(answer)
    message.authority = rrsets(authority)
    message.additional = rrsets("ns.b.example. 5 IN A 192.0.2.99")
    parsed = parse_answer(message.to_wire(max_size=65535), 9, query.name, query.qtype)
    chain = follow(parsed, query.name, query.qtype)
    unwanted = {ip_address(text) for text in refused}
    content = rebuild(query, parsed, chain, lambda one: one not in unwanted)
    sent = reply(query, content, limit=limit, ede=ede, ede_text="because")
    assert len(sent) <= limit
    read = dns.message.from_wire(sent)
    assert read.additional == []
    return read


def rrsets(text: str) -> list[dns.rrset.RRset]:
    found: dict[tuple[str, ...], list[str]] = {}
    for line in filter(None, text.split("\n")):
        owner, ttl, _, kind, data = line.strip().split(" ", 4)
        found.setdefault((owner, ttl, kind, data.split()[0] if kind == "RRSIG" else ""), []).append(data)
    return [dns.rrset.from_text(o, int(ttl), "IN", kind, *data) for (o, ttl, kind, _), data in found.items()]


def lines(section: list[dns.rrset.RRset]) -> list[str]:
    return [line for rrset in section for line in sorted(str(rrset).split("\n"))]


# --- replies without records ---


@pytest.mark.parametrize("flags", [0, code.RD, code.CD | code.RD])
@pytest.mark.parametrize("rcode", [0, 2, 3, 5])
def test_a_reply_without_records(flags: int, rcode: int) -> None:
    query = ask()._replace(flags=flags | code.AD)
    read = dns.message.from_wire(build_reply(query, rcode, ede=15, ede_text="no"))
    assert (read.id, read.rcode(), read.edns) == (query.id, rcode, -1)
    assert int(read.flags) == code.QR | code.RA | flags | rcode
    assert build_reply(query, rcode)[12:] == query.question
    assert (read.answer, read.authority, read.additional) == ([], [], [])


def test_letters_of_the_question_come_back() -> None:
    assert b"\1A\7example\0" in build_reply(ask("A.example"), 3)


@pytest.mark.parametrize("dnssec", [False, True])
def test_an_extended_error(dnssec: bool) -> None:
    query = ask(edns=True, dnssec=dnssec)
    read = dns.message.from_wire(build_reply(query, 3, ede=15, ede_text="not in its rules"))
    assert [(o.code, o.text) for o in read.options if isinstance(o, dns.edns.EDEOption)] == [
        (15, "not in its rules")
    ]
    assert (read.payload, bool(read.ednsflags & code.DO)) == (1232, dnssec)
    plain = dns.message.from_wire(build_reply(query, 3))
    assert (plain.edns, plain.options, bool(plain.ednsflags & code.DO)) == (0, (), dnssec)


def test_text_of_an_extended_error_that_does_not_fit() -> None:
    sent = build_reply(ask(edns=True), 3, ede=15, ede_text="x" * 600, limit=512)
    assert len(sent) < 60
    read = dns.message.from_wire(sent)
    assert not read.flags & dns.flags.TC
    assert [int(option.otype) for option in read.options] == [15]


def test_an_extended_rcode() -> None:
    assert dns.message.from_wire(build_reply(ask(edns=True), code.BADVERS)).rcode() == code.BADVERS
    assert dns.message.from_wire(build_reply(ask(), code.BADVERS)).rcode() == code.SERVFAIL


# --- answers put together anew ---

CHAIN = """a.example. 60 IN CNAME x.b.example.
           x.b.example. 30 IN A 192.0.2.1
           x.b.example. 30 IN A 192.0.2.2"""
NOISE = """
           y.b.example. 30 IN A 192.0.2.3
           b.example. 30 IN A 192.0.2.4"""


def test_an_answer() -> None:
    read = reply_to(ask(), CHAIN + NOISE, "b.example. 5 IN NS ns.b.example.")
    assert lines(read.answer) == [
        "A.example. 60 IN CNAME x.b.example.",
        "x.b.example. 30 IN A 192.0.2.1",
        "x.b.example. 30 IN A 192.0.2.2",
    ]
    assert read.authority == []


def test_only_admitted_addresses() -> None:
    read = reply_to(ask(), CHAIN, refused=("192.0.2.1",))
    assert lines(read.answer)[1:] == ["x.b.example. 30 IN A 192.0.2.2"]
    assert len(reply_to(ask(), CHAIN, refused=("192.0.2.1", "192.0.2.2")).answer) == 1


def test_services_lose_their_hints() -> None:
    read = reply_to(ask(qtype="HTTPS"), "a.example. 5 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1")
    assert lines(read.answer) == ['A.example. 5 IN HTTPS 1 . alpn="h2"']


def test_signatures_come_to_who_asks_for_them() -> None:
    signed = f"{CHAIN}\nx.b.example. 30 IN RRSIG A {RRSIG}\na.example. 60 IN RRSIG CNAME {RRSIG}"
    signed += f"\nx.b.example. 30 IN RRSIG TXT {RRSIG}\nz.b.example. 30 IN RRSIG A {RRSIG}"
    proof = f"b.example. 5 IN NSEC c.example. A\nb.example. 5 IN RRSIG NSEC {RRSIG}"
    proof += f"\nb.example. 5 IN NS ns.b.example.\nb.example. 5 IN RRSIG NS {RRSIG}"
    with_do = reply_to(ask(dnssec=True), signed, proof)
    assert [(str(r.name), str(r.covers)) for r in with_do.answer if r.rdtype == code.RRSIG] == [
        ("x.b.example.", "1"),
        ("A.example.", "5"),
    ]
    assert [int(r.rdtype) for r in with_do.authority] == [code.NSEC, code.RRSIG]
    without = reply_to(ask(edns=True), signed, proof)
    assert {int(r.rdtype) for r in (*without.answer, *without.authority)} == {code.A, code.CNAME}


def test_a_changed_answer_is_not_signed() -> None:
    signed = f"{CHAIN}\nx.b.example. 30 IN RRSIG A {RRSIG}\na.example. 60 IN RRSIG CNAME {RRSIG}"
    read = reply_to(ask(dnssec=True), signed, refused=("192.0.2.1",))
    assert [int(r.covers) for r in read.answer if r.rdtype == code.RRSIG] == [code.CNAME]
    assert not read.flags & dns.flags.AD
    hints = f"a.example. 5 IN HTTPS 1 . ipv4hint=192.0.2.1\na.example. 5 IN RRSIG HTTPS {RRSIG}"
    read = reply_to(ask(qtype="HTTPS", dnssec=True), hints)
    assert [int(r.rdtype) for r in read.answer] == [code.HTTPS]
    assert not read.flags & dns.flags.AD


def test_whether_it_was_validated_is_said_to_who_asks() -> None:
    asks = ask()._replace(flags=code.RD | code.AD)
    assert reply_to(asks, CHAIN).flags & dns.flags.AD
    assert reply_to(ask(dnssec=True), CHAIN).flags & dns.flags.AD
    assert not reply_to(ask(), CHAIN).flags & dns.flags.AD
    assert not reply_to(asks, CHAIN, flags=0x8180).flags & dns.flags.AD


def test_what_was_cut_is_not_called_validated() -> None:
    many = "\n".join(f"a.example. 5 IN A 192.0.2.{i}" for i in range(65))
    read = reply_to(ask(dnssec=True), f"{many}\na.example. 5 IN RRSIG A {RRSIG}")
    assert [(int(r.rdtype), len(r)) for r in read.answer] == [(code.A, 64)]
    assert not read.flags & dns.flags.AD


def test_a_renamed_zone_comes_with_its_proof() -> None:
    answer = f"""example. 5 IN DNAME b.example.
                 example. 5 IN RRSIG DNAME {RRSIG}
                 other. 5 IN DNAME b.example.
                 a.example. 5 IN CNAME a.b.example.
                 a.b.example. 5 IN A 192.0.2.1"""
    kinds = [int(r.rdtype) for r in reply_to(ask(dnssec=True), answer).answer]
    assert kinds == [code.CNAME, code.A, code.DNAME, code.RRSIG]
    assert [int(r.rdtype) for r in reply_to(ask(), answer).answer] == [code.CNAME, code.A]


@pytest.mark.parametrize("what", ["renamed zones", "zones that do not have it"])
def test_many_zones_cost_no_more_than_reading_them(what: str) -> None:
    """Each is above none of the names, which have as many labels as a name can."""
    if what == "renamed zones":
        names = [f"{first}{'.a' * 115}." for first in "abcdefghi"]
        noise = [f"q{number}. 5 IN DNAME ." for number in range(250)]
        answer, authority, rcode = [*(f"{a} 5 IN CNAME {b}" for a, b in pairwise(names)), *noise], [], 0
    else:
        names, answer, rcode = [f"a{'.a' * 115}."], [], code.NXDOMAIN
        authority = [f"q{number}. 5 IN SOA . . 1 2 3 4 5" for number in range(250)]
    query = ask(names[0], dnssec=True)
    message = dns.message.make_response(dns.message.from_wire(build_query(9, query.name, query.qtype)))
    message.flags = dns.flags.Flag(0x8180 | rcode)
    message.answer, message.authority = rrsets("\n".join(answer)), rrsets("\n".join(authority))
    data = message.to_wire(max_size=65535)

    def seconds() -> tuple[float, float]:
        began = time.perf_counter()
        parsed = parse_answer(data, 9, query.name, query.qtype)
        chain, read = follow(parsed, query.name, query.qtype), time.perf_counter()
        assert rebuild(query, parsed, chain, everything).counts == (len(names) - 1, 0)
        return read - began, time.perf_counter() - read

    reading, writing = map(min, zip(*(seconds() for _ in range(5)), strict=True))
    assert writing < reading


@pytest.mark.parametrize("rcode", [0, 3])
def test_negative_answers_hold_the_zone(rcode: int) -> None:
    zone = f"b.example. 5 IN SOA {SOA}\nb.example. 5 IN RRSIG SOA {RRSIG}\nb.example. 5 IN NSEC c.example. A"
    read = reply_to(ask("no.b.example"), "", zone, rcode=rcode)
    assert (read.rcode(), lines(read.authority)) == (rcode, [f"b.example. 5 IN SOA {SOA}"])
    read = reply_to(ask("no.b.example", dnssec=True), "", zone, rcode=rcode)
    assert [int(r.rdtype) for r in read.authority] == [code.SOA, code.RRSIG, code.NSEC]


def test_the_zone_must_be_above_the_last_name() -> None:
    chain = "a.example. 60 IN CNAME x.b.example."
    assert reply_to(ask(), chain, f"b.example. 5 IN SOA {SOA}").authority != []
    assert reply_to(ask(), chain, f"c.example. 5 IN SOA {SOA}").authority == []
    assert reply_to(ask(), CHAIN, f"b.example. 5 IN SOA {SOA}").authority == []


@pytest.mark.parametrize("rcode", [1, 2, 5, 9])
def test_other_failures_become_one(rcode: int) -> None:
    read = reply_to(ask(edns=True), CHAIN, rcode=rcode, ede=23)
    assert (read.rcode(), read.answer) == (code.SERVFAIL, [])
    assert [option.otype for option in read.options] == [15]


def test_what_is_too_long_is_truncated() -> None:
    many = "\n".join(f"a.example. 5 IN A 192.0.2.{i}" for i in range(64))
    query = ask(edns=True)
    whole = len(rebuild_many(query, many, 65535))
    assert len(rebuild_many(query, many, whole)) == whole
    read = reply_to(query, many, limit=whole - 1)
    assert read.flags & dns.flags.TC
    assert (read.answer, read.authority, read.edns) == ([], [], 0)


def rebuild_many(query: Query, answer: str, limit: int) -> bytes:
    return reply(query, contents(answer, query)[0], limit=limit)


def contents(answer: str, query: Query, *others: Query) -> list[Content]:
    """What each gets of one answer, to `query`."""
    message = dns.message.make_response(dns.message.from_wire(build_query(9, query.name, query.qtype)))
    message.answer = rrsets(answer)
    parsed = parse_answer(message.to_wire(), 9, query.name, query.qtype)
    chain = follow(parsed, query.name, query.qtype)
    return [rebuild(one, parsed, chain, everything) for one in (query, *others)]


def test_who_asks_the_same_in_another_way_gets_the_same() -> None:
    """It is put together once, for the first of them; the letters, the id and the room are each one's own."""
    many = "\n".join(f"a.example. 5 IN A 192.0.2.{i}" for i in range(64))
    first, second = ask("A.example"), ask("a.EXAMPLE", edns=True)._replace(id=77, flags=code.RD | code.CD)
    content, other = contents(many, first, second)
    assert content == other
    for query in (first, second):
        sent = reply(query, content)
        read = dns.message.from_wire(sent)
        assert sent[12 : 12 + len(query.question)] == query.question
        assert (read.id, read.edns) == (query.id, 0 if query.edns else -1)
        assert bool(read.flags & dns.flags.CD) is query.checking_disabled
        assert not read.flags & dns.flags.TC
        assert [len(rrset) for rrset in read.answer] == [64]
        short = dns.message.from_wire(reply(query, content, limit=512))
        assert (short.id, short.answer) == (query.id, [])
        assert short.flags & dns.flags.TC


def test_whole_names_are_written_once() -> None:
    message = rebuild_many(ask(), CHAIN, 65535)
    assert message.count(b"\1x\1b\7example\0") == 1
    assert message.count(b"\1a\7example\0") == 0


def test_no_pointer_goes_beyond_what_a_pointer_can_say() -> None:
    """Texts of 20 KiB, then a signature of an owner that is first written behind 16 KiB."""
    texts = "\n".join(f'a.example. 5 IN TXT "{i:03}{"x" * 250}"' for i in range(80))
    proof = f"b.example. 5 IN NSEC c.example. A\nb.example. 5 IN RRSIG NSEC {RRSIG}"
    read = reply_to(ask(qtype="TXT", dnssec=True), texts, proof)
    assert [str(r.name) for r in read.authority] == ["b.example.", "b.example."]
