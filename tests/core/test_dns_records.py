"""What records hold: right to the last byte, and services without their hints."""

from __future__ import annotations

import struct

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest

from penstock.core import dns_codes as code
from penstock.core.dns_codes import type_text
from penstock.core.dns_names import MAX_STEPS, Malformed, OverBound, Steps
from penstock.core.dns_records import MAX_PARAMETERS, PARAMETER, RDATA, SERVICE, WINDOW, without_hints

SIGNATURE = "A 8 2 5 20300101000000 20260101000000 1 example. AAAA"
GOOD: list[tuple[int, str]] = [
    (code.A, "192.0.2.1"),
    (code.AAAA, "2001:db8::1"),
    (code.NS, "ns.example."),
    (code.CNAME, "."),
    (code.PTR, "a.example."),
    (code.DNAME, "a.example."),
    (code.SOA, "ns.example. root.example. 1 2 3 4 5"),
    (code.MX, "10 mail.example."),
    (code.SRV, "1 2 443 www.example."),
    (code.TXT, '"one" "" "three"'),
    (code.DS, "1 8 1 " + "ab" * 20),
    (code.DS, "1 8 2 " + "ab" * 32),
    (code.DS, "1 8 4 " + "ab" * 48),
    (code.DS, "1 8 200 ab"),
    (code.DNSKEY, "257 3 8 AwEAAQ=="),
    (code.RRSIG, SIGNATURE),
    (code.NSEC, "b.example. A RRSIG NSEC TYPE65000"),
    (code.NSEC3, "1 1 1 abcd 2t7b4g4vsa5smi47k61mv5bv1a22bojr A RRSIG"),
    (code.NSEC3, "1 1 1 - 2t7b4g4vsa5smi47k61mv5bv1a22bojr"),
    (code.SVCB, "1 svc.example. alpn=h2 port=53 key7=/dns-query{?dns}"),
    (code.HTTPS, "1 . mandatory=alpn alpn=h2,h3 no-default-alpn ech=AAQAAAAA"),
    (code.HTTPS, "0 www.example."),
]


def wire(kind: int, text: str) -> bytes:
    made = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.RdataType.make(kind), text).to_wire()
    assert made is not None
    return made


def read(kind: int, data: bytes, behind: bytes = b"") -> bytes:
    """As the last bytes of a message, or with others behind it."""
    return RDATA[kind](bytes(12) + data + behind, 12, 12 + len(data), Steps())


def refused(kind: int, data: bytes, behind: bytes = b"") -> bool:
    try:
        read(kind, data, behind)
    except (Malformed, IndexError, struct.error):
        return True
    return False


@pytest.mark.parametrize(("kind", "text"), GOOD)
def test_good_data_comes_through(kind: int, text: str) -> None:
    assert read(kind, wire(kind, text)) == wire(kind, text)
    assert read(kind, wire(kind, text), b"\1a\0" * 9) == wire(kind, text)


EXACT = [(kind, text) for kind, text in GOOD if kind not in (code.DNSKEY, code.RRSIG) and " 200 " not in text]


@pytest.mark.parametrize(("kind", "text"), EXACT)
@pytest.mark.parametrize("behind", [b"", b"\0" * 20, b"\1a\0" * 9])
def test_what_is_too_long_or_too_short(kind: int, text: str, behind: bytes) -> None:
    data = wire(kind, text)
    assert refused(kind, data[:-1], data[-1:] + behind)
    assert refused(kind, data + b"\xee", behind)
    assert refused(kind, b"", data + behind)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (code.TXT, b""),
        (code.DS, wire(code.DS, "1 8 2 " + "ab" * 32)[:3]),
        (code.DS, b"\0\1\x08\0ab"),
        (code.DS, b"\0\1\x08\xc8"),  # an unknown digest, and empty
        (code.DNSKEY, b"\1\1\3\x08"),
        (code.RRSIG, wire(code.RRSIG, SIGNATURE)[:-3]),  # no signature
        (code.RRSIG, bytes(18) + b"\xc0\x0c" + b"sign"),  # a signer is never compressed
        (code.NSEC, b"\xc0\x0c\0\1\1"),
        (code.NSEC, b"\1a\0" + b"\0\0"),  # an empty window
        (code.NSEC, b"\1a\0" + b"\1\1\1\0\1\1"),  # windows that fall
        (code.NSEC, b"\1a\0" + b"\0\x21" + b"\1" * 33),
        (code.NSEC, b"\1a\0" + b"\0\2\1\0"),  # a zero at the end
        (code.NSEC3, b"\1\1\0\1\xff"),
        (code.NSEC3, b"\1\1\0\1\0\0"),
        (code.SVCB, b"\0\1\xc0\x0c"),
        (code.SVCB, b"\0\1\0" + b"\0\3\0\1x"),
        (code.SVCB, b"\0\1\0" + b"\0\1\0\0"),
        (code.SVCB, b"\0\1\0" + b"\0\1\0\2\0x"),
        (code.SVCB, b"\0\1\0" + b"\0\1\0\2\2x"),
        (code.SVCB, b"\0\1\0" + b"\0\2\0\0"),  # no default, and no other
        (code.SVCB, b"\0\1\0" + b"\0\3\0\2xx\0\3\0\2xx"),  # twice
        (code.SVCB, b"\0\1\0" + b"\0\4\0\4abcd\0\3\0\2xx"),  # falling
        (code.SVCB, b"\0\1\0" + b"\0\4\0\3abc"),
        (code.SVCB, b"\0\1\0" + b"\0\6\0\4abcd"),
        (code.SVCB, b"\0\1\0" + b"\0\5\0\4\0\3xx"),
        (code.SVCB, b"\0\1\0" + b"\0\x08\0\1x"),
        (code.SVCB, b"\0\1\0" + b"\0\0\0\2\0\3"),  # mandatory, and not there
        (code.SVCB, b"\0\1\0" + b"\0\0\0\0"),
        (code.SVCB, b"\0\1\0" + b"\0\0\0\2\0\0"),
        (code.SVCB, b"\0\1\0" + b"\0\0\0\3\0\3\0\0\3\0\2xx"),
        (code.SVCB, b"\0\1\0" + b"\0\0\0\4\0\4\0\3\0\3\0\2xx\0\4\0\4abcd"),  # mandatory keys that fall
        (code.SVCB, b"\0\1\0" + b"\0\3\0\xff"),
        (code.SVCB, b"\0\1\0" + b"\0\3"),
    ],
)
def test_what_is_malformed(kind: int, data: bytes) -> None:
    assert refused(kind, data)


def test_names_are_made_whole() -> None:
    message = b"x" * 12 + b"\1a\1b\0" + b"\0\1\1M\xc0\x0c"
    assert RDATA[code.MX](message, 17, len(message), Steps()) == b"\0\1\1M\1a\1b\0"
    message = b"x" * 12 + b"\1a\1b\0" + b"\xc0\x0c\1r\xc0\x0e" + bytes(20)
    assert RDATA[code.SOA](message, 17, len(message), Steps()) == b"\1a\1b\0\1r\1b\0" + bytes(20)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("1 . alpn=h2 ipv4hint=192.0.2.1 ech=AAQAAAAA ipv6hint=2001:db8::1", "1 . alpn=h2 ech=AAQAAAAA"),
        ("1 . ipv4hint=192.0.2.1,192.0.2.2", "1 ."),
        ("1 a.example. ipv6hint=2001:db8::1 key9=x", "1 a.example. key9=x"),
        ("1 . mandatory=alpn,ipv4hint alpn=h2 ipv4hint=192.0.2.1", "1 . mandatory=alpn alpn=h2"),
        ("1 . mandatory=ipv4hint,ipv6hint alpn=h2 ipv4hint=192.0.2.1 ipv6hint=::1", "1 . alpn=h2"),
        ("1 . alpn=h2 port=8443", "1 . alpn=h2 port=8443"),
        ("0 a.example.", "0 a.example."),
    ],
)
def test_hints_are_taken_out(text: str, left: str) -> None:
    assert without_hints(wire(code.HTTPS, text)) == wire(code.HTTPS, left)
    assert read(code.HTTPS, wire(code.HTTPS, left)) == without_hints(wire(code.HTTPS, text))


@pytest.mark.parametrize("priority", [0, 1])
def test_number_of_parameters(priority: int) -> None:
    """Each is looked at: the thousands that one record has room for would take milliseconds."""
    many = priority.to_bytes(2) + b"\0" + b"\0\4\0\4abcd"
    many += b"".join(struct.pack(">HH", key, 0) for key in range(100, 100 + MAX_PARAMETERS - 1))
    assert read(code.HTTPS, many) == many
    assert len(without_hints(many)) == (len(many) - 8 if priority else 3)
    with pytest.raises(OverBound):
        read(code.HTTPS, many + struct.pack(">HH", 999, 0))


@pytest.mark.parametrize(
    ("kind", "data", "steps"),
    [
        (code.A, b"abcd", 0),
        (code.TXT, b"\2ab\0\1c", 3),
        (code.NS, b"\1a\1b\0", 2),
        (code.SOA, b"\1a\1b\0" * 2 + bytes(20), 4),
        (code.RRSIG, bytes(18) + b"\1a\1b\0" + b"sign", 2),
        (code.NSEC, b"\1a\1b\0" + b"\0\1\1" + b"\1\1\1", 2 + 2 * WINDOW),
        (code.NSEC3, b"\1\1\0\1\0\1a" + b"\0\1\1", WINDOW),
        (code.HTTPS, b"\0\1\0" + b"\0\1\0\3\2h2" + b"\0\4\0\4abcd", SERVICE + 2 * PARAMETER + 9),
    ],
)
def test_what_is_in_a_record_takes_steps(kind: int, data: bytes, steps: int) -> None:
    left = Steps()
    RDATA[kind](data, 0, len(data), left)
    assert MAX_STEPS - left.left == steps
    left.left = steps
    RDATA[kind](data, 0, len(data), left)
    if steps:
        left.left = steps - 1
        with pytest.raises(OverBound):
            RDATA[kind](data, 0, len(data), left)


def test_an_alias_loses_all_parameters() -> None:
    assert without_hints(b"\0\0\1a\0\0\3\0\2ab\0\4\0\4abcd") == b"\0\0\1a\0"


def test_texts() -> None:
    assert type_text(code.HTTPS) == "HTTPS"
    assert type_text(65000) == "TYPE65000"
