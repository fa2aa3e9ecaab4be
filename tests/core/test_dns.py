"""Questions: what is taken, what is told no, what is dropped; and dnspython agrees about the rest."""

from __future__ import annotations

import random
import struct

import dns.flags
import dns.message
import dns.name
import dns_oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import dns_codes as code
from penstock.core.dns import NotTaken, Query, build_query, parse_query
from penstock.core.dns_names import Malformed
from penstock.core.dns_replies import build_reply

FUZZED = 500_000
CHUNKS = 10
OPT = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0"
"""1232 bytes, DO."""


def query(name: bytes = b"\2HF\2co\0", tail: bytes = b"\0\1\0\1", rest: bytes = b"", **header: int) -> bytes:
    fields = {"id": 0x1234, "flags": 0x0100, "qd": 1, "an": 0, "ns": 0, "ar": int(bool(rest))} | header
    return struct.pack(">6H", *fields.values()) + name + tail + rest


def test_a_question_without_edns() -> None:
    assert parse_query(query()) == Query(
        id=0x1234,
        flags=0x0100,
        question=b"\2HF\2co\0\0\1\0\1",
        name="hf.co",
        plain=True,
        qtype=code.A,
        edns=False,
        size=512,
        dnssec=False,
    )


def test_edns() -> None:
    parsed = parse_query(query(rest=OPT))
    assert (parsed.edns, parsed.size, parsed.dnssec) == (True, 1232, True)
    small = parse_query(query(rest=b"\0\0\x29\0\x10\0\0\0\0\0\x05\0\x0a\0\1x"))
    assert (small.edns, small.size, small.dnssec) == (True, 512, False)


@pytest.mark.parametrize(
    ("flags", "said"), [(0x100, (True, False, False)), (0x20, (False, True, False)), (0x10, (False, False, True))]
)
def test_flags(flags: int, said: tuple[bool, bool, bool]) -> None:
    parsed = parse_query(query(flags=flags))
    assert (parsed.recursion, parsed.authentic, parsed.checking_disabled) == said


@pytest.mark.parametrize(
    ("wire", "name", "plain"),
    [
        (b"\0", "", True),
        (b"\7invalid\0", "invalid", True),
        (b"\3a.b\2co\0", "a\\046b.co", False),
        (b"\1\0\2co\0", "\\000.co", False),
        (b"\1\\\2co\0", "\\092.co", False),
        (b"\2\xc3\xa9\2co\0", "\\195\\169.co", False),
        (b"\2a*\2co\0", "a\\042.co", False),
        (b"\3_-a\2CO\0", "_-a.co", True),
    ],
)
def test_names(wire: bytes, name: str, plain: bool) -> None:
    parsed = parse_query(query(wire))
    assert (parsed.name, parsed.plain) == (name, plain)


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (query(flags=0x2800), code.NOTIMP),  # an update
        (query(qd=0), code.FORMERR),
        (query(qd=2), code.FORMERR),
        (query(tail=b"\0\1\0\3"), code.REFUSED),  # class CH
        (query(an=1), code.FORMERR),
        (query(tail=b"\0\xfb\0\1", ns=1), code.REFUSED),  # an incremental transfer
        (query(rest=b"\0\0\x29\4\xd0\0\1\0\0\0\0"), code.BADVERS),
        (query(rest=OPT, ar=0), code.FORMERR),  # rubbish at the end
        (query(rest=OPT + b"x"), code.FORMERR),
        (query(rest=OPT + OPT, ar=2), code.FORMERR),
        (query(rest=b"\1a" + OPT), code.FORMERR),  # EDNS belongs to the root
        (query(rest=b"\5" + OPT[1:]), code.FORMERR),
        (query(rest=b"\0\0\xfa\0\xff\0\0\0\0\0\0"), code.FORMERR),  # TSIG
        (query(rest=b"\0\0\x29\4\xd0\0\0\0\0\0\4\0\x0a\0\1"), code.FORMERR),  # an option too long
        (query(rest=b"\0\0\x29\4\xd0\0\0\0\0\0\3\0\x0a\0"), code.FORMERR),  # half an option
        (query(ar=1), code.FORMERR),
        (query(b"\xc0\x0c"), code.FORMERR),
        (query(b"\x40a\0"), code.FORMERR),
        (query(b"\x3f" + b"a" * 20, b""), code.FORMERR),
        (query(b"\2HF\2co", b""), code.FORMERR),
        (query(tail=b"\0\1\0"), code.FORMERR),
        (query((b"\x3f" + b"a" * 63) * 4 + b"\0"), code.FORMERR),
    ],
)
def test_what_is_told_no(data: bytes, rcode: int) -> None:
    with pytest.raises(NotTaken) as caught:
        parse_query(data)
    assert caught.value.rcode == rcode
    reply = dns.message.from_wire(build_reply(caught.value.query, rcode))
    assert (reply.id, reply.rcode(), reply.opcode()) == (0x1234, rcode, data[2] >> 3 & 15)


def test_number_of_options() -> None:
    head = b"\0\0\x29\x04\xd0\0\0\0\0\0"
    assert parse_query(query(rest=head + b"\x80" + b"\0\x0c\0\0" * 32)).edns
    with pytest.raises(NotTaken):
        parse_query(query(rest=head + b"\x84" + b"\0\x0c\0\0" * 33))


def test_a_name_of_255_bytes_is_taken() -> None:
    longest = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert len(longest) == 255
    assert len(parse_query(query(longest)).name) == 253
    with pytest.raises(NotTaken):
        parse_query(query((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0"))


@pytest.mark.parametrize("data", [b"", query()[:11], query(flags=0x8180), query(flags=0xA800)])
def test_what_is_dropped(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_query(data)
    assert not isinstance(caught.value, NotTaken)


@pytest.mark.parametrize("dnssec", [False, True])
def test_what_is_asked_of_an_upstream(dnssec: bool) -> None:
    wire = build_query(
        7, "hf.co", code.AAAA, recursion=True, checking_disabled=True, authentic=True, dnssec=dnssec
    )
    message = dns.message.from_wire(wire)
    assert (message.id, int(message.flags)) == (7, 0x0130)
    assert str(message.question[0]) == "hf.co. IN AAAA"
    assert (message.edns, message.payload, bool(message.ednsflags), message.options) == (0, 1232, dnssec, ())
    assert int(dns.message.from_wire(build_query(7, "hf.co", code.A, recursion=False)).flags) == 0
    assert dns.message.from_wire(build_query(7, "", code.NS, edns=False)).edns == -1


@pytest.mark.parametrize("name", ["a..b", ".", "a.", "A.b", "a\\046b", "é", "a b", "a" * 64, "a." * 127 + "ab"])
def test_what_cannot_be_asked(name: str) -> None:
    with pytest.raises(ValueError, match=r"not a plain name|longer"):
        build_query(7, name, code.A)


@given(st.binary(max_size=80))
def test_random_bytes(data: bytes) -> None:
    examine(data)
    examine(query()[:12] + data)


@pytest.mark.parametrize("seed", range(CHUNKS))
def test_dnspython_agrees_about_questions(seed: int, count: int) -> None:
    rng = random.Random(seed)
    good = dns_oracle.queries(rng)
    assert all(examine(data) for data in good)
    taken = sum(
        examine(dns_oracle.mutated(rng, rng.choice(good), good)) for _ in range(FUZZED // CHUNKS // count)
    )
    assert taken > FUZZED // CHUNKS // count // 20


def examine(data: bytes) -> bool:
    """Whether it was taken; what was taken is what dnspython reads, and whatever is said to it is well-formed."""
    try:
        parsed = parse_query(data)
    except NotTaken as e:
        told, rcode = e.query, e.rcode
    except Malformed:
        return False
    else:
        agree(data, parsed)
        return True
    assert dns.message.from_wire(build_reply(told, rcode, ede=0, ede_text="no")).id == told.id
    return False


def agree(data: bytes, parsed: Query) -> None:
    message = dns.message.from_wire(data, continue_on_error=True)
    asked = message.question[0]
    assert (message.id, int(message.flags)) == (parsed.id, parsed.flags)
    assert (asked.name, asked.rdtype, asked.rdclass) == (
        dns.name.from_text(parsed.name),
        parsed.qtype,
        code.IN,
    )
    if message.edns == 0:  # not where dnspython minds what an option says
        assert parsed.edns
        assert (parsed.size, parsed.dnssec) == (
            max(512, message.payload),
            bool(message.ednsflags & dns.flags.DO),
        )
    reply = dns.message.from_wire(build_reply(parsed, code.NXDOMAIN, ede=15, ede_text="not in its rules"))
    assert dns.message.from_wire(data[:4] + b"\0\1" + bytes(6) + parsed.question).is_response(reply)
    if parsed.plain:
        forwarded = dns.message.from_wire(build_query(9, parsed.name, parsed.qtype, dnssec=parsed.dnssec))
        assert forwarded.question == message.question
