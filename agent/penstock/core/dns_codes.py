"""Numbers and layouts of DNS messages, as IANA's registry and RFC 1035 and 6891 have them."""

from __future__ import annotations

import struct

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

A, NS, CNAME, SOA, NULL, PTR, MX, TXT, AAAA, SRV, DNAME, OPT = 1, 2, 5, 6, 10, 12, 15, 16, 28, 33, 39, 41
DS, RRSIG, NSEC, DNSKEY, NSEC3, SVCB, HTTPS = 43, 46, 47, 48, 50, 64, 65
IXFR, AXFR, ANY = 251, 252, 255
ADDRESSES = frozenset({A, AAAA})
META = frozenset({OPT, *range(128, 256)})
"""Types of questions and of transport: no record of an answer has them."""

IN = 1

QR, OPCODE, AA, TC, RD, RA, AD, CD = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
DO = 0x8000  # among the flags of EDNS

EDE_OTHER, EDE_NOT_READY, EDE_BLOCKED, EDE_FILTERED, EDE_PROHIBITED = 0, 14, 15, 17, 18
EDE_NO_REACHABLE_AUTHORITY, EDE_NETWORK_ERROR, EDE_INVALID_DATA = 22, 23, 24
"""Extended errors, RFC 8914."""

PLAIN_SIZE = 512
"""Bytes of an answer over UDP that a client without EDNS takes."""

OUR_SIZE = 1232
"""Bytes that we say we take over UDP: what passes IPv6 unfragmented."""

HEADER = struct.Struct(">6H")  # id, flags, and how many records each of the four sections has
HEADER_SIZE = 12
TYPE_CLASS = struct.Struct(">HH")
RECORD = struct.Struct(">HHIH")  # type, class, TTL, length of the data; the owner stands before
OPT_RECORD = struct.Struct(">BHHIH")  # with the root as its owner
OPTION = struct.Struct(">HH")  # code, length

NO_OPTIONS = {dnssec: OPT_RECORD.pack(0, OPT, OUR_SIZE, DO if dnssec else 0, 0) for dnssec in (False, True)}
"""The OPT record that we send, by DO."""

_TEXTS = {
    A: "A", NS: "NS", CNAME: "CNAME", SOA: "SOA", NULL: "NULL", PTR: "PTR", 13: "HINFO", MX: "MX", TXT: "TXT",
    AAAA: "AAAA", 29: "LOC", SRV: "SRV", 35: "NAPTR", DNAME: "DNAME", DS: "DS", 44: "SSHFP", RRSIG: "RRSIG",
    NSEC: "NSEC", DNSKEY: "DNSKEY", NSEC3: "NSEC3", 52: "TLSA", SVCB: "SVCB", HTTPS: "HTTPS", 99: "SPF",
    IXFR: "IXFR", AXFR: "AXFR", ANY: "ANY", 257: "CAA",
}  # fmt: skip


def type_text(qtype: int) -> str:
    """The type of a record or a question for people."""
    return _TEXTS.get(qtype, f"TYPE{qtype}")
