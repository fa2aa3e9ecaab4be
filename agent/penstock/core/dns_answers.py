"""Answers of an upstream: bytes -> Answer -> the chain that begins at the asked name.

An upstream is trusted to know the names it is asked, and with nothing else: an answer is taken apart strictly,
and what is not on the chain from the asked name counts for nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from penstock.core import dns_codes as code
from penstock.core.dns import check_options
from penstock.core.dns_codes import HEADER_SIZE
from penstock.core.dns_names import Malformed, OverBound, Steps, read_name, text_of, wire_of
from penstock.core.dns_records import RDATA
from penstock.core.policy import Address

MAX_RECORDS = 512
"""Records of one message, all sections together."""

RECORD = 25
"""Steps of one, or of a run of addresses, beside those of its owner and its data: also of writing it."""

MAX_STEPS = 8
"""CNAMEs from the asked name to the last one."""

MAX_ADDRESSES = 64
"""Addresses of one name and family; further ones are neither learned nor passed on."""

_FAILURES = frozenset({code.FORMERR, code.SERVFAIL, code.NOTIMP, code.REFUSED})
_FOREVER = 0x7FFFFFFF  # seconds
_RUNS = {
    b"\xc0\x0c" + code.TYPE_CLASS.pack(kind, code.IN): (kind, struct.Struct(f">6sIH{length}s"), length)
    for kind, length in ((code.A, 4), (code.AAAA, 16))
}
"""By how a record begins whose owner points to the question: its type, its layout, and how long its data is."""


class Record(NamedTuple):
    """One record of class IN."""

    owner: bytes  # wire form, lower case
    type: int
    ttl: int  # seconds; 0 where its top bit was set (RFC 2181)
    rdata: bytes  # names in it uncompressed, letters as written


class Answer(NamedTuple):
    """What an upstream answered to the question that was put to it."""

    rcode: int  # with EDNS's upper bits
    flags: int  # the header's
    answer: tuple[Record, ...]
    authority: tuple[Record, ...]

    @property
    def truncated(self) -> bool:
        """TC: ask again over TCP.  Such an answer holds no records."""
        return bool(self.flags & code.TC)

    @property
    def authentic(self) -> bool:
        """AD: the upstream says that it validated."""
        return bool(self.flags & code.AD)


class Chain(NamedTuple):
    """The way from the asked name to the records that answer the question."""

    terminal: str  # the last name, as `text_of` writes it; the asked one where there is no CNAME
    links: tuple[Record, ...]  # the CNAMEs in order
    records: tuple[Record, ...]  # the terminal name's of the asked type, no two the same
    packed: tuple[tuple[bytes, int], ...]  # of A or AAAA, for each its address and the lowest TTL on the way to it
    ttl: int | None  # lowest of links and records; None when there is none
    cut: bool  # there were more than 64 addresses: the others are in neither list

    @property
    def addresses(self) -> tuple[tuple[Address, int], ...]:
        """`packed`, as addresses."""
        return tuple([(_address(packed), ttl) for packed, ttl in self.packed])


def parse_answer(data: bytes, id: int, name: str, qtype: int) -> Answer:
    """The answer in `data` to what build_query(id, name, qtype) asked.

    Raises Malformed for anything that is not exactly that, OverBound (a Malformed) for one with too much
    in it, ValueError when `name` is not plain.
    """
    if len(data) < HEADER_SIZE:
        raise Malformed("shorter than a header")
    got, flags, questions, *counts = code.HEADER.unpack_from(data)
    if got != id or flags & (code.QR | code.OPCODE) != code.QR:
        raise Malformed("not an answer to what was asked")
    rcode = flags & 15
    if not questions and len(data) == HEADER_SIZE and rcode in _FAILURES:
        return Answer(rcode, flags, (), ())  # how servers that do not know EDNS refuse it
    asked = wire_of(name)
    at = HEADER_SIZE + len(asked)
    end = at + 4
    if questions != 1 or data[at:end] != code.TYPE_CLASS.pack(qtype, code.IN):
        raise Malformed("not an answer to what was asked")
    if data[HEADER_SIZE:at] != asked and data[HEADER_SIZE:at].lower() != asked:
        raise Malformed("not an answer to what was asked")
    if flags & code.TC:
        return Answer(rcode, flags, (), ())
    if sum(counts) > MAX_RECORDS:
        raise OverBound(f"an answer of {sum(counts)} records")
    try:
        return _sections(data, end, asked, flags, counts)
    except (IndexError, struct.error) as e:
        raise Malformed("cut off inside a record") from e


def _sections(data: bytes, at: int, asked: bytes, flags: int, counts: list[int]) -> Answer:
    steps = Steps()
    answer, at = _section(data, at, asked, counts[0], steps)
    authority, at = _section(data, at, asked, counts[1], steps)
    upper = 0
    if counts[2]:
        upper, at = _additional(data, at, asked, counts[2], steps)
    if at != len(data):
        raise Malformed("more bytes than records")
    return Answer(flags & 15 | upper << 4, flags, answer, authority)


def _section(data: bytes, at: int, asked: bytes, count: int, steps: Steps) -> tuple[tuple[Record, ...], int]:
    """`count` records, without those of types that we do not know, and where they end."""
    records: list[Record] = []
    left = count
    while left:
        steps.take(RECORD)
        run = _RUNS.get(data[at : at + 6])
        if run is not None:
            taken, at = _run(data, at, asked, left, run, records)
            if taken:
                left -= taken
                continue
        left -= 1
        if data[at] == 0xC0 and data[at + 1] == HEADER_SIZE:
            owner, at = asked, at + 2
        else:
            owner, at = read_name(data, at, steps)
            owner = owner.lower()
        kind, rclass, ttl, length = code.RECORD.unpack_from(data, at)
        start = at + 10
        at = start + length
        if at > len(data):
            raise Malformed("a record that goes on behind the end")
        if rclass != code.IN or kind in code.META:
            raise Malformed("a record that no answer has")
        reader = RDATA.get(kind)
        if reader is not None:
            records.append(Record(owner, kind, ttl if ttl < 0x80000000 else 0, reader(data, start, at, steps)))
    return tuple(records), at


def _run(
    data: bytes, at: int, asked: bytes, most: int, run: tuple[int, struct.Struct, int], records: list[Record]
) -> tuple[int, int]:
    """Addresses of the asked name one behind the other, at most `most`: how many, and where they end.

    Content networks give dozens, and they all look alike.
    """
    kind, layout, length = run
    first, size = data[at : at + 6], layout.size
    whole = min(most, (len(data) - at) // size)
    taken = 0
    for head, ttl, said, rdata in layout.iter_unpack(data[at : at + whole * size]):
        if head != first or said != length:
            break
        records.append(Record(asked, kind, ttl if ttl < 0x80000000 else 0, rdata))
        taken += 1
    return taken, at + taken * size


def _additional(data: bytes, at: int, asked: bytes, count: int, steps: Steps) -> tuple[int, int]:
    """The upper bits of the rcode, and where the section ends.  Its records are walked and forgotten."""
    upper: int | None = None
    for _ in range(count):
        if data[at] == 0 and data[at + 1] == 0 and data[at + 2] == code.OPT:
            _, _, ttl, length = code.RECORD.unpack_from(data, at + 1)
            start = at + 11
            at = start + length
            if upper is not None or at > len(data):
                raise Malformed("EDNS twice, or cut off")
            check_options(data, start, at)
            upper = ttl >> 24
        else:
            _, at = _section(data, at, asked, 1, steps)
    return upper or 0, at


def follow(answer: Answer, name: str, qtype: int) -> Chain:
    """The chain of CNAMEs from `name` (plain), at most 8, and the records of type `qtype` at its end.

    Nothing else in the answer counts.  An answer that is not NOERROR has no records at the end of its chain.
    Raises OverBound for a longer chain, Malformed for one that loops or forks.
    """
    terminal = wire_of(name)
    links = () if qtype == code.CNAME else _links(answer.answer, terminal)
    if links:
        terminal = links[-1].rdata.lower()
    records, cut = _terminal_records(answer, terminal, qtype)
    ttls = [link.ttl for link in links]
    packed: tuple[tuple[bytes, int], ...] = ()
    if qtype in code.ADDRESSES:
        least = min(ttls, default=_FOREVER)
        packed = tuple([(rdata, ttl if ttl < least else least) for _, _, ttl, rdata in records])
    ttls += [record.ttl for record in records]
    return Chain(text_of(terminal)[0], links, records, packed, min(ttls) if ttls else None, cut)


def _terminal_records(answer: Answer, owner: bytes, qtype: int) -> tuple[tuple[Record, ...], bool]:
    """Those of `owner` that answer the question, each once with its lowest TTL; and were there too many?"""
    if answer.rcode != code.NOERROR:
        return (), False
    records = [record for record in answer.answer if record.type == qtype and record.owner == owner]
    found = {record.rdata: record for record in records}
    if len(found) == len(records) and (len(found) <= MAX_ADDRESSES or qtype not in code.ADDRESSES):
        return tuple(records), False  # as nearly always
    found.clear()
    cut = False
    for record in records:
        known = found.get(record.rdata)
        if known is None and qtype in code.ADDRESSES and len(found) == MAX_ADDRESSES:
            cut = True
        elif known is None or known.ttl > record.ttl:
            found[record.rdata] = record
    return tuple(found.values()), cut


def _links(records: Iterable[Record], name: bytes) -> tuple[Record, ...]:
    cnames: dict[bytes, Record] = {}
    for record in records:
        if record.type == code.CNAME:
            other = cnames.setdefault(record.owner, record)
            if other is not record and other.rdata.lower() != record.rdata.lower():
                raise Malformed("a name with two canonical names")
    links: list[Record] = []
    while link := cnames.pop(name, None):
        name = link.rdata.lower()
        links.append(link)
        if len(links) > MAX_STEPS:
            raise OverBound(f"a chain of more than {MAX_STEPS} names")
    if any(link.owner == name for link in links):
        raise Malformed("a chain of names that loops")
    return tuple(links)


@lru_cache(8192)
def _address(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
