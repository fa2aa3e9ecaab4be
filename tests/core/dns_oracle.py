"""Messages for the parser to go wrong on, and what dnspython makes of the same bytes.

Half of the answers are good ones with bytes changed, half are put together from a few names and types at random,
so that chains fork, loop and end in the wrong place while every length is right.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from ipaddress import ip_address
from itertools import pairwise

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from penstock.core.policy import Address

Question = tuple[int, str, int]
"""id, name, type: what was asked."""

CHAIN = "www.a.example. 300 IN CNAME cdn.b.example.", "cdn.b.example. 60 IN CNAME e.c.example."
ANSWERS: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("www.a.example", "A"): ((*CHAIN, "e.c.example. 30 IN A 192.0.2.1", "e.c.example. 30 IN A 192.0.2.2"), ()),
    ("www.a.example", "AAAA"): ((*CHAIN, "e.c.example. 30 IN AAAA 2001:db8::1"), ()),
    ("a.example", "A"): (("a.example. 5 IN A 198.51.100.7",), ("a.example. 9 IN NS ns.a.example.",)),
    ("a.example", "MX"): (("a.example. 5 IN MX 10 mail.a.example.",), ()),
    ("a.example", "NS"): (("a.example. 5 IN NS ns.a.example.", "a.example. 5 IN NS ns.b.example."), ()),
    ("a.example", "TXT"): (('a.example. 5 IN TXT "one" "two"',), ()),
    ("_x._tcp.a.example", "SRV"): (("_x._tcp.a.example. 5 IN SRV 1 2 443 www.a.example.",), ()),
    ("1.2.0.192.in-addr.arpa", "PTR"): (("1.2.0.192.in-addr.arpa. 5 IN PTR Host.a.example.",), ()),
    ("a.example", "DS"): ((f"a.example. 5 IN DS 1 8 2 {'ab' * 32}",), ()),
    ("a.example", "DNSKEY"): (("a.example. 5 IN DNSKEY 257 3 8 AwEAAa==",), ()),
    ("a.example", "HTTPS"): (
        (
            "a.example. 5 IN HTTPS 1 . mandatory=alpn,ipv4hint alpn=h2,h3 port=443 ipv4hint=192.0.2.1 "
            "ipv6hint=2001:db8::1",
            "a.example. 5 IN HTTPS 0 www.a.example.",
        ),
        (),
    ),
    ("d.old.example", "A"): (
        (
            "old.example. 5 IN DNAME new.example.",
            "old.example. 5 IN RRSIG DNAME 8 2 5 20300101000000 20260101000000 1 example. AAAA",
            "d.old.example. 5 IN CNAME d.new.example.",
            "d.new.example. 5 IN A 203.0.113.5",
            "d.new.example. 5 IN RRSIG A 8 3 5 20300101000000 20260101000000 1 new.example. AAAA",
        ),
        ("new.example. 5 IN NSEC x.new.example. A RRSIG NSEC",),
    ),
    ("no.a.example", "A"): (
        (),
        (
            "a.example. 60 IN SOA ns.a.example. root.a.example. 1 2 3 4 5",
            "a.example. 60 IN RRSIG SOA 8 2 5 20300101000000 20260101000000 1 a.example. AAAA",
            "0p9mhaveqvm6t7vbl5lop2u3t2rp3tom.a.example. 60 IN NSEC3 1 1 1 ab 2t7b4g4vsa5smi47k61mv5bv1a22bojr A",
        ),
    ),
}
"""By name and type: records of the answer section, and of authority."""

NAMES = ("www.a.example", "a.example", "cdn.b.example", "WWW.a.Example", "x.y", "a", "", "w\\046w.a.example")
TYPES = (1, 28, 5, 65, 16, 33, 12, 6, 2, 43, 46, 47, 64, 255, 10, 251, 99, 65000)
POINTERS = (b"\xc0\x0c", b"\xc0\x00", b"\xc0\x1d", b"\xff\xff", b"\xc0\x20", b"\xc1\x00")


def queries(rng: random.Random) -> list[bytes]:
    """Questions as clients write them."""
    found = []
    for name in NAMES:
        for qtype in TYPES:
            kind = dns.rdatatype.RdataType.make(qtype)
            message = dns.message.make_query(dns.name.from_text(name), kind, use_edns=False)
            message.id = rng.randrange(65536)
            message.flags = rng.choice((0, 0x100, 0x110, 0x120, 0x130))
            if rng.random() < 0.6:
                options: list[dns.edns.Option] = [dns.edns.ECSOption("198.51.100.0", 24)]
                payload = rng.choice((0, 512, 1232, 4096, 65535))
                said = options if rng.random() < 0.3 else []
                message.use_edns(0, rng.choice((0, 0x8000)), payload, options=said)
            found.append(message.to_wire())
    return found


def answers(rng: random.Random) -> list[tuple[Question, bytes]]:
    """Good answers, with the questions that they are to."""
    found: list[tuple[Question, bytes]] = []
    for (name, qtype), (answer, authority) in ANSWERS.items():
        for edns in (False, True):
            query = dns.message.make_query(name, qtype, use_edns=edns)
            message = dns.message.make_response(query, recursion_available=True)
            message.answer = _rrsets(answer)
            message.authority = _rrsets(authority)
            if not answer:
                message.set_rcode(rng.choice((dns.rcode.NOERROR, dns.rcode.NXDOMAIN)))
            wire = message.to_wire(max_size=65535)
            found.append(((message.id, name, dns.rdatatype.from_text(qtype)), wire))
    return found


def _rrsets(texts: Sequence[str]) -> list[dns.rrset.RRset]:
    split = [text.split(" ", 4) for text in texts]
    return [dns.rrset.from_text(owner, int(ttl), "IN", kind, data) for owner, ttl, _, kind, data in split]


def made_up(rng: random.Random) -> tuple[Question, bytes]:
    """An answer of random records about few names: its lengths are right, and little else is."""
    names = [b"\1a\0", b"\1b\0", b"\1A\0", b"\xc0\x0c", b"\1B\xc0\x0c", b"\1b\1a\0", b"\1c\0"]
    qtype = rng.choice((1, 1, 28, 5))
    id = rng.randrange(65536)
    counts = [rng.choice((1, 2, 3, 4, 5)), rng.choice((0, 0, 1)), rng.choice((0, 0, 1))]
    if rng.random() < 0.02:
        counts[0] = 80
    body = b""
    for _ in range(sum(counts)):
        kind = rng.choice((qtype, qtype, qtype, qtype, 1, 28, 5, 5, 39, 6, 65))
        data = {
            1: rng.choice((b"\xc0\0\2", b"\xcb\0\x71")) + bytes((rng.randrange(256),)),
            28: b"\x20\1\x0d\xb8" + bytes(11) + bytes((rng.randrange(256),)),
            6: rng.choice(names) + rng.choice(names) + bytes(20),
            65: b"\0\1" + rng.choice((b"\0", b"\1a\0")) + b"\0\4\0\4\xc0\0\2\1",
        }.get(kind, rng.choice(names))
        ttl = rng.choice((0, 1, 60, 300, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        body += rng.choice(names) + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data
    flags = rng.choice((0x8180, 0x8180, 0x8580, 0x81A0, 0x8183, 0x8380))
    return (id, "a", qtype), struct.pack(">6H", id, flags, 1, *counts) + b"\1a\0" + struct.pack(
        ">HH", qtype, 1
    ) + body


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(10):
            case 0 | 1:
                data = data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]
            case 2 | 3:
                flipped = (data[at] if data else 0) ^ 1 << rng.randrange(8)
                data = data[:at] + bytes((flipped,)) + data[at + 1 :]
            case 4:
                data = data[:at]
            case 5:
                data = data[:at] + rng.randbytes(rng.randrange(1, 5)) + data[at:]
            case 6:
                data = data[:at] + data[at + rng.randrange(1, 5) :]
            case 7:
                data = data[:at] + rng.choice(POINTERS) + data[at + 2 :]
            case 8:  # a section's count
                at = rng.choice((4, 6, 8, 10))
                data = data[:at] + struct.pack(">H", rng.choice((0, 1, 2, 3, 65535))) + data[at + 2 :]
            case _:
                other = rng.choice(others)
                data = data[:at] + other[at:]
    return data


def justified(data: bytes, question: Question) -> dict[Address, int]:
    """The addresses, with the lowest TTL on the way to each, that dnspython's reading of an answer gives.

    The chain is followed here by other means: one step at a time over all records, from the asked name.
    """
    _, name, qtype = question
    message = dns.message.from_wire(data, one_rr_per_rrset=True, continue_on_error=True)
    if message.rcode() != dns.rcode.NOERROR or qtype not in (dns.rdatatype.A, dns.rdatatype.AAAA):
        return {}
    here = dns.name.from_text(name)
    ttl = 0x7FFFFFFF
    for _ in range(9):
        steps = [r for r in message.answer if r.rdtype == dns.rdatatype.CNAME and r.name == here]
        if not steps:
            break
        here = steps[0][0].target
        ttl = min(ttl, steps[0].ttl)
    else:
        return {}
    found: dict[Address, int] = {}
    for record in message.answer:
        if record.rdtype == qtype and record.name == here and record.rdclass == dns.rdataclass.IN:
            address = ip_address(record[0].address)
            found[address] = min(ttl, record.ttl, found.get(address, ttl))
    return found


def addresses_in(message: dns.message.Message) -> set[Address]:
    """Every address that a client could take from a reply, hints included."""
    found: set[Address] = set()
    for rrset in (*message.answer, *message.authority, *message.additional):
        for rdata in rrset:
            if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                found.add(ip_address(rdata.address))
            for key in (4, 6):
                hint = getattr(rdata, "params", {}).get(key)
                found |= {ip_address(text) for text in hint.addresses} if hint else set()
    return found


def is_one_chain(message: dns.message.Message) -> bool:
    """Whether a reply's answer section is one way from the question, DNAMEs and signatures left aside."""
    here = message.question[0].name
    rrsets = [
        r for r in message.answer if r.rdtype not in (dns.rdatatype.RRSIG, dns.rdatatype.DNAME)
    ]
    if message.question[0].rdtype != dns.rdatatype.CNAME:
        while rrsets and rrsets[0].rdtype == dns.rdatatype.CNAME:
            link = rrsets.pop(0)
            if link.name != here or len(link) != 1:
                return False
            here = link[0].target
    return all(r.name == here and r.rdtype == message.question[0].rdtype for r in rrsets) and all(
        before.name == after.name for before, after in pairwise(rrsets)
    )
