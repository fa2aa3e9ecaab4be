"""Answers: taken apart strictly, and nothing but the chain from the asked name counts."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address
from itertools import pairwise

import dns.exception
import dns.message
import dns_oracle
import pytest
from dns_oracle import Question, addresses_in, is_one_chain, justified
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import dns_codes as code
from penstock.core.dns import build_query, parse_query
from penstock.core.dns_answers import MAX_ADDRESSES, MAX_RECORDS, Answer, Chain, follow, parse_answer
from penstock.core.dns_names import Malformed, OverBound, wire_of
from penstock.core.dns_replies import rebuild, reply
from penstock.core.policy import Address

FUZZED = 500_000
CHUNKS = 10

ASKED = b"\1a\1b\0"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
A1, A2 = ip_address("192.0.2.1"), ip_address("192.0.2.2")


def record(kind: int, data: bytes, owner: bytes = b"\xc0\x0c", ttl: int = 60, rclass: int = 1) -> bytes:
    return owner + struct.pack(">HHIH", kind, rclass, ttl, len(data)) + data


def a(last: int, owner: bytes = b"\xc0\x0c", ttl: int = 60) -> bytes:
    return record(code.A, bytes((192, 0, 2, last)), owner, ttl)


def cname(owner: bytes, target: bytes, ttl: int = 60) -> bytes:
    return record(code.CNAME, target, owner, ttl)


def message(
    answer: list[bytes],
    authority: list[bytes] | None = None,
    additional: list[bytes] | None = None,
    flags: int = 0x8180,
    question: bytes = ASKED + b"\0\1\0\1",
) -> bytes:
    sections = (answer, authority or [], additional or [])
    head = struct.pack(">6H", 7, flags, 1, *map(len, sections))
    return head + question + b"".join(b"".join(section) for section in sections)


def parse(data: bytes, qtype: int = code.A) -> Answer:
    return parse_answer(data, 7, "a.b", qtype)


def chain(*answer: bytes, qtype: int = code.A, flags: int = 0x8180) -> Chain:
    question = ASKED + struct.pack(">HH", qtype, 1)
    return follow(parse(message(list(answer), flags=flags, question=question), qtype), "a.b", qtype)


def test_an_address() -> None:
    assert chain(a(1), a(2, ttl=30)).addresses == ((A1, 60), (A2, 30))
    six = chain(record(code.AAAA, ip_address("2001:db8::1").packed), qtype=code.AAAA)
    assert six.addresses == ((ip_address("2001:db8::1"), 60),)


@pytest.mark.parametrize("upper", [0, 1, 255])
def test_header_and_extended_rcode(upper: int) -> None:
    opt = b"\0\0\x29\x04\xd0" + bytes((upper, 0, 0, 0)) + b"\0\0"
    answer = parse(message([], additional=[opt], flags=0x85A3))
    assert answer.rcode == upper << 4 | code.NXDOMAIN
    assert (answer.truncated, answer.authentic) == (False, True)


def test_the_question_may_come_back_in_other_letters() -> None:
    assert parse(message([a(1)], question=b"\1A\1b\0\0\1\0\1")).answer[0].owner == ASKED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message([])[:11],
        message([a(1)], flags=0x0100),  # a question
        message([a(1)], flags=0xA980),  # another operation
        message([a(1)], question=b"\1a\1c\0\0\1\0\1"),
        message([a(1)], question=b"\1a\1b\1c\0\0\1\0\1"),
        message([a(1)], question=ASKED + b"\0\x1c\0\1"),
        message([a(1)], question=ASKED + b"\0\1\0\3"),
        b"\0\x08" + message([a(1)])[2:],  # another id
        message([])[:4] + bytes(8),  # no question, though all is well
        message([], flags=0x8181)[:4] + bytes(8) + ASKED,
        message([a(1)])[:5] + b"\2" + message([a(1)])[6:],
        message([a(1)]) + b"x",
        message([a(1)])[:-1],
        message([a(1)], additional=[b""]),  # a record that is not there
        message([record(code.A, b"abc")]),
        message([record(code.A, b"abcde")]),
        message([record(code.AAAA, b"abcd")]),
        message([record(code.A, b"abcd", rclass=3)]),
        message([record(code.ANY, b"")]),
        message([OPT]),
        message([], [OPT]),
        message([], additional=[OPT, OPT]),
        message([], additional=[OPT[:-1] + b"\1x"]),
        message([], additional=[b"\1a" + OPT]),
        message([a(1, b"\xc0\x00")]),  # into the header
        message([a(1, b"\xc0\x15")]),  # to itself
        message([a(1, b"\xc0\xff")]),
        message([a(1, b"\1x\xc0\x15")]),
        message([a(1, b"\x80\x0c")]),
        message([a(1, b"\x41" + bytes(65) + b"\0")]),
        message([a(1, (b"\x3f" + bytes(63)) * 4 + b"\0")]),
        message([cname(b"\xc0\x0c", b"\1x")]),
        message([cname(b"\xc0\x0c", b"\1x\0\0")]),
        message([cname(b"\xc0\x0c", b"\xc0\x0c\0")]),
        message([cname(b"\xc0\x0c", b"")]),
    ],
)
def test_what_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data)


@pytest.mark.parametrize("rcode", [code.FORMERR, code.SERVFAIL, code.NOTIMP, code.REFUSED])
def test_a_server_without_edns_refuses_with_a_header(rcode: int) -> None:
    head = struct.pack(">6H", 7, 0x8180 | rcode, 0, 0, 0, 0)
    assert parse(head) == Answer(rcode, 0x8180 | rcode, (), ())


def test_truncated_answers_hold_nothing() -> None:
    answer = parse(message([a(1)], flags=0x8380)[:-2])
    assert answer.truncated
    assert answer.answer == ()


def test_number_of_records() -> None:
    many = [a(1)] * MAX_RECORDS
    assert len(parse(message(many)).answer) == MAX_RECORDS
    with pytest.raises(OverBound):
        parse(message(many, [a(1)]))


def service(number: int, parameters: int) -> bytes:
    many = b"".join(struct.pack(">HH", 100 + key, 0) for key in range(parameters))
    return record(code.HTTPS, struct.pack(">H", number) + b"\0" + b"\0\4\0\4abcd" + many)


def in_pieces(label: bytes) -> tuple[bytes, bytes]:
    """A record that nobody keeps, and a pointer to a name in it that goes back as often as a name may."""
    at, target, data = 12 + len(ASKED) + 4 + 12, 12, b""
    for _ in range(15):
        pointer = struct.pack(">H", 0xC000 | target)
        target = at + len(data)
        data += label + pointer
    return record(99, data), struct.pack(">H", 0xC000 | target)


PIECES, THERE = in_pieces(b"\1x" * 8)
TURNS, BACK = in_pieces(b"")
LONGEST = b"\1x" * 126 + b"\0"
COSTLY = {
    "services": [service(number, 25) for number in range(512)],
    "short services": [service(number, 0) for number in range(512)],
    "names": [PIECES, *[record(code.SOA, THERE * 2 + bytes(20), THERE)] * 511],
    "pointers": [TURNS, *[record(code.SOA, BACK * 2 + bytes(20), BACK)] * 511],
    "owners": [PIECES, *[a(1, THERE)] * 511],
    "owners of what is not kept": [PIECES, *[record(99, b"", THERE)] * 511],
    "aliases": [PIECES, *[cname(THERE, THERE)] * 511],
    "names as they are": [record(code.NS, LONGEST, LONGEST)] * 120,
    "signers": [record(code.RRSIG, bytes(18) + LONGEST + b"sign")] * 220,
    "records": [record(code.DNAME, b"\0", b"\0")] * 512,
    "runs of one address": [a(1), record(code.AAAA, bytes(16))] * 256,
    "texts": [record(code.TXT, bytes(60_000))],
    "protocols": [record(code.HTTPS, b"\0\1\0" + b"\0\1" + struct.pack(">H", 60_000) + b"\1x" * 30_000)],
    "types": [record(code.NSEC, b"\0" + b"".join(bytes((w, 1, 1)) for w in range(256)))] * 80,
}


@pytest.mark.parametrize("records", COSTLY.values(), ids=COSTLY)
@pytest.mark.parametrize("section", [0, 1, 2])
def test_what_takes_long_to_read_is_refused(records: list[bytes], section: int) -> None:
    """Each is well-formed, and would take several milliseconds, up to forty."""
    answer, authority, additional = (records if section == number else [] for number in range(3))
    data = message(answer, authority, additional)
    assert len(data) < 65536
    with pytest.raises(OverBound):
        parse(data)


EDGE = wire_of("d111111abcdef8.cloudfront.example")
AT_EDGE = struct.pack(">H", 0xC000 | 12 + len(ASKED) + 4 + 12)
SIGNED = bytes(16) + EDGE + bytes(256)
USUAL = {
    "addresses": [a(number % 256) for number in range(512)],
    "signed addresses of another name": [
        cname(b"\xc0\x0c", EDGE), *[a(number, AT_EDGE) for number in range(192)],
        *[record(code.RRSIG, b"\0\1" + SIGNED, AT_EDGE)] * 4,
    ],
    "services": [service(number, 9) for number in range(10)],
    "texts": [record(code.TXT, b"\xff" + bytes(255)) for _ in range(100)],
    "a text in parts": [record(code.TXT, (b"\xff" + bytes(255)) * 16)] * 4,
    "servers": [record(code.SRV, bytes(6) + wire_of(f"dc{number}.site.corp.example")) for number in range(200)],
    "proofs": [record(code.NSEC3, b"\1\1\0\1\0\x14" + bytes(20) + b"\0\6\x40\1\0\0\0\3", EDGE)] * 8
    + [record(code.RRSIG, b"\0\x32" + SIGNED, EDGE)] * 8,
}  # fmt: skip


@pytest.mark.parametrize("records", USUAL.values(), ids=USUAL)
def test_what_names_have_is_taken(records: list[bytes]) -> None:
    """The most that is seen of each, and more."""
    assert len(parse(message(records)).answer) == len(records)
    assert len(parse(message([], records)).authority) == len(records)


def test_number_of_pointers() -> None:
    """Each goes back by two bytes, inside of a record that nobody reads."""
    start = 12 + 9 + 12
    pointers = [b"\xc0\x0c"] + [struct.pack(">H", 0xC000 | start + 2 * i) for i in range(100)]
    for number, fits in ((15, True), (16, False)):
        data = message([record(99, b"".join(pointers)), a(1, pointers[number])])
        if fits:
            assert parse(data).answer[0].owner == ASKED
        else:
            with pytest.raises(Malformed):
                parse(data)


def test_a_type_that_we_do_not_know_is_left_out() -> None:
    assert [r.type for r in parse(message([record(99, b"junk"), a(1)])).answer] == [code.A]


def test_a_chain() -> None:
    c = chain(cname(b"\xc0\x0c", b"\1C\0", 50), a(1, b"\1e\0", 40), cname(b"\1c\0", b"\1e\0", 20))
    assert c.terminal == "e"
    assert [(r.owner, r.rdata, r.ttl) for r in c.links] == [(ASKED, b"\1C\0", 50), (b"\1c\0", b"\1e\0", 20)]
    assert c.addresses == ((A1, 20),)
    assert c.ttl == 20


def test_addresses_beside_the_chain_do_not_count() -> None:
    c = chain(a(9), cname(b"\xc0\x0c", b"\1c\0"), a(1, b"\1c\0"), a(8, b"\1d\0"), a(7, b"\1b\0"))
    assert c.addresses == ((A1, 60),)
    assert chain(a(1, b"\1c\0")).addresses == ()
    assert chain(record(code.AAAA, bytes(16)), a(1)).addresses == ((A1, 60),)


def test_addresses_of_other_sections_do_not_count() -> None:
    assert follow(parse(message([], [a(1)], [a(2)])), "a.b", code.A).addresses == ()


@pytest.mark.parametrize("flags", [0x8183, 0x8182, 0x8185])
def test_a_failure_has_no_addresses(flags: int) -> None:
    c = chain(cname(b"\xc0\x0c", b"\1c\0"), a(1, b"\1c\0"), flags=flags)
    assert (c.terminal, len(c.links), c.addresses) == ("c", 1, ())


def test_a_question_for_the_alias_itself() -> None:
    c = chain(cname(b"\xc0\x0c", b"\1c\0"), a(1, b"\1c\0"), qtype=code.CNAME)
    assert (c.terminal, c.links, [r.rdata for r in c.records]) == ("a.b", (), [b"\1c\0"])


def steps(number: int) -> list[bytes]:
    names = [ASKED] + [bytes((1, 0x63 + i, 0)) for i in range(number)]
    return [cname(*pair) for pair in pairwise(names)] + [a(1, names[-1])]


def test_length_of_a_chain() -> None:
    assert chain(*steps(8)).addresses == ((A1, 60),)
    with pytest.raises(OverBound):
        chain(*steps(9))


@pytest.mark.parametrize(
    "answer",
    [
        [cname(ASKED, ASKED)],
        [cname(ASKED, b"\1C\0"), cname(b"\1c\0", b"\1A\1b\0")],
        [cname(ASKED, b"\1c\0"), cname(b"\1c\0", b"\1d\0"), cname(b"\1d\0", b"\1c\0")],
        [cname(ASKED, b"\1c\0"), cname(ASKED, b"\1d\0")],
    ],
)
def test_loops_and_forks(answer: list[bytes]) -> None:
    with pytest.raises(Malformed):
        chain(*answer, a(1, b"\1c\0"))


def test_an_alias_said_twice_is_one() -> None:
    assert chain(cname(ASKED, b"\1c\0"), cname(ASKED, b"\1C\0"), a(1, b"\1c\0")).addresses == ((A1, 60),)


def test_ttl() -> None:
    assert chain(a(1, ttl=0x7FFFFFFF)).addresses == ((A1, 0x7FFFFFFF),)
    assert chain(a(1, ttl=0x80000000)).addresses == ((A1, 0),)
    assert chain(a(1, ttl=90), a(1, ttl=70), a(1, ttl=80)).addresses == ((A1, 70),)
    assert chain(cname(ASKED, b"\1c\0", 0xFFFFFFFF), a(1, b"\1c\0")).addresses == ((A1, 0),)
    assert chain().ttl is None


def test_number_of_addresses() -> None:
    every = [a(i) for i in range(MAX_ADDRESSES)]
    assert not chain(*every, a(0), a(5, ttl=7)).cut
    c = chain(*every, a(200), a(5, ttl=7))
    assert c.cut
    assert len(c.addresses) == len(c.records) == MAX_ADDRESSES
    assert ip_address("192.0.2.200") not in dict(c.addresses)
    assert dict(c.addresses)[ip_address("192.0.2.5")] == 7


@given(st.binary(max_size=120))
def test_random_bytes(data: bytes) -> None:
    examine(data, (7, "a.b", code.A))
    examine(message([a(1)])[: 12 + len(ASKED) + 4] + data, (7, "a.b", code.A))


def test_good_answers_are_taken() -> None:
    for question, data in dns_oracle.answers(random.Random(1)):
        assert examine(data, question) is not None


@pytest.mark.parametrize("seed", range(CHUNKS))
def test_dnspython_agrees_about_answers(seed: int, count: int) -> None:
    rng = random.Random(seed)
    good = dns_oracle.answers(rng)
    others = [data for _, data in good]
    taken = learned = 0
    for i in range(FUZZED // CHUNKS // count):
        if i % 2:
            question, data = rng.choice(good)
            data = dns_oracle.mutated(rng, data, others)
        else:
            question, data = dns_oracle.made_up(rng)
            if rng.random() < 0.3:
                data = dns_oracle.mutated(rng, data, others)
        found = examine(data, question)
        taken += found is not None
        learned += bool(found)
    assert taken > FUZZED // CHUNKS // count // 5
    assert learned > FUZZED // CHUNKS // count // 20


def examine(data: bytes, question: Question) -> set[Address] | None:
    """The addresses that a client learns, each of which dnspython must justify; None when there is no answer."""
    id, name, qtype = question
    try:
        answer = parse_answer(data, id, name, qtype)
        found = follow(answer, name, qtype)
    except Malformed:
        return None
    right = {} if answer.truncated else justified(data, question)
    for address, ttl in found.addresses:
        assert ttl <= right[address]
    if not found.cut:
        assert dict(found.addresses) == right
    check_reply(question, answer, found)
    return {address for address, _ in found.addresses}


def check_reply(question: Question, answer: Answer, found: Chain) -> None:
    """What a client gets parses, and holds what was admitted and nothing else that is an address."""
    id, name, qtype = question
    wire = bytearray(build_query(id, name, qtype, dnssec=id % 2 == 0))
    wire[13:14] = wire[13:14].upper()
    query = parse_query(bytes(wire))
    admitted = {address for address, _ in found.addresses if int(address) % 3}
    content = rebuild(query, answer, found, admitted.__contains__)
    sent = reply(query, content, limit=512 if id % 5 == 0 else 65535)
    read = dns.message.from_wire(sent, one_rr_per_rrset=True)
    assert len(sent) <= 512 or id % 5
    assert sent[12 : 12 + len(query.question)] == query.question
    assert read.id == id
    assert is_one_chain(read)
    assert read.additional == []
    if read.flags & 0x200:
        assert (read.answer, read.authority) == ([], [])
    else:
        assert addresses_in(read) == admitted
