"""Replies to clients: put together anew from what was understood, never passed on."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from penstock.core import dns_codes as code
from penstock.core.dns import Query
from penstock.core.dns_answers import Answer, Chain, Record
from penstock.core.dns_codes import HEADER_SIZE
from penstock.core.dns_names import and_above
from penstock.core.dns_records import without_hints
from penstock.core.policy import Address

_EDE = struct.Struct(">HHH")  # code of the option, its length, the extended error
_EDE_OPTION = 15
_POINTER_TO_QUESTION = b"\xc0\x0c"
_HEADS = {kind: _POINTER_TO_QUESTION + code.TYPE_CLASS.pack(kind, code.IN) for kind in (code.A, code.AAAA)}
_ADDRESS = {4: struct.Struct(">6sIH4s").pack, 16: struct.Struct(">6sIH16s").pack}  # head, TTL, length, address
_PROOFS = frozenset({code.NSEC, code.NSEC3})
_SERVICES = frozenset({code.SVCB, code.HTTPS})


class Content(NamedTuple):
    """What a reply says to everybody who asks the same."""

    rcode: int
    flags: int = 0
    records: bytes = b""
    counts: tuple[int, int] = (0, 0)  # records in the answer section, and in the authority section


def build_reply(
    query: Query, rcode: int, *, ede: int | None = None, ede_text: str = "", limit: int = 65535
) -> bytes:
    """A reply without records; see `reply`."""
    return reply(query, Content(rcode), ede=ede, ede_text=ede_text, limit=limit)


def rebuild(query: Query, answer: Answer, chain: Chain, admits: Callable[[Address], bool] | None) -> Content:
    """What clients get whose `query` got this `answer`, `chain` being follow(answer, name, qtype) of it.

    It holds the chain's CNAMEs, the terminal records (of addresses those that `admits` takes, None: all; services
    without address hints), SOA for a negative answer, and with DO what proves it; nothing of the additional
    section.  AD only to who asked for it, and not when something was taken out.  NOERROR and NXDOMAIN stay; any
    other rcode is SERVFAIL, without records.

    It is the same for all who ask for that name and type with the same flags, in whatever letters: of a long
    answer it takes milliseconds, and hundreds may wait for one.
    """
    if answer.rcode not in (code.NOERROR, code.NXDOMAIN):
        return Content(code.SERVFAIL)
    kept = _admitted(chain, admits)
    whole = len(kept) == len(chain.records) and kept == chain.records and not chain.cut
    answers: tuple[Record, ...] = chain.links + kept
    authority: tuple[Record, ...] = ()
    if not chain.records:
        authority = _negative(answer, chain, query)
    if query.dnssec:
        answers += _signatures(answer, chain, whole)
        authority += tuple(r for r in answer.authority if _subject(r) in _PROOFS)
    ad = whole and answer.authentic and (query.dnssec or query.authentic)
    records = _written(query, answers + authority)
    return Content(answer.rcode, code.AD if ad else 0, records, (len(answers), len(authority)))


def reply(
    query: Query, content: Content, *, ede: int | None = None, ede_text: str = "", limit: int = 65535
) -> bytes:
    """The reply to one client: the question as it was written, RA, and RD, CD and the operation copied.

    `ede` is an extended error, said only to who speaks EDNS; its text is left out where the reply would get
    longer than `limit` bytes (512 or more).  Longer than that without it, a reply says TC and has no records.
    An rcode above 15 is SERVFAIL to who does not speak EDNS.
    """
    rcode, flags, records, counts = content
    if rcode > 15 and not query.edns:
        rcode = code.SERVFAIL
    flags |= code.QR | code.RA | query.flags & (code.OPCODE | code.RD | code.CD) | rcode & 15
    room = limit - HEADER_SIZE - len(query.question) - len(records)
    opt = _opt(query, rcode, ede, ede_text)
    if len(opt) > room and ede_text:
        opt = _opt(query, rcode, ede, "")
    if len(opt) > room and records:
        flags, records, counts = flags | code.TC, b"", (0, 0)
    head = code.HEADER.pack(query.id, flags, 1 if query.question else 0, *counts, 1 if opt else 0)
    return head + query.question + records + opt


def _admitted(chain: Chain, admits: Callable[[Address], bool] | None) -> tuple[Record, ...]:
    if chain.packed and admits is None:
        return chain.records
    if chain.packed and admits is not None:
        pairs = zip(chain.records, chain.addresses, strict=True)
        return tuple([record for record, (address, _) in pairs if admits(address)])
    return tuple(
        record._replace(rdata=without_hints(record.rdata)) if record.type in _SERVICES else record
        for record in chain.records
    )


def _negative(answer: Answer, chain: Chain, query: Query) -> tuple[Record, ...]:
    """The SOA that says how long the answer holds; with DO its signature."""
    terminal = chain.links[-1].rdata.lower() if chain.links else query.question[:-4].lower()
    zones = frozenset(and_above(terminal))
    for soa in answer.authority:
        if soa.type == code.SOA and soa.owner in zones:
            signed = answer.authority if query.dnssec else ()
            return soa, *_signing(signed, {(soa.owner, code.SOA)})
    return ()


def _signatures(answer: Answer, chain: Chain, whole: bool) -> tuple[Record, ...]:
    """Of what is kept of the chain, with the DNAMEs it came by.  One over changed records would prove nothing."""
    zones = {zone for link in chain.links for zone in and_above(link.owner)}
    aliases = tuple(r for r in answer.answer if r.type == code.DNAME and r.owner in zones)
    kept = aliases + chain.links + (chain.records if whole else ())
    return aliases + _signing(answer.answer, {(record.owner, record.type) for record in kept})


def _signing(records: Iterable[Record], signed: set[tuple[bytes, int]]) -> tuple[Record, ...]:
    return tuple(r for r in records if r.type == code.RRSIG and (r.owner, _subject(r)) in signed)


def _subject(record: Record) -> int:
    """The type of a record, or that which a signature is about."""
    return int.from_bytes(record.rdata[:2], "big") if record.type == code.RRSIG else record.type


def _written(query: Query, records: tuple[Record, ...]) -> bytes:
    """In wire form; an owner that stands before, as a whole name, is a pointer to it."""
    asked = query.question[:-4].lower()
    places = {asked: _POINTER_TO_QUESTION}
    at = HEADER_SIZE + len(query.question)
    parts: list[bytes] = []
    for owner, kind, ttl, rdata in records:
        head = _HEADS.get(kind) if owner == asked else None
        if head is not None:  # as with most there are
            size = len(rdata)
            parts.append(_ADDRESS[size](head, ttl, size, rdata))
            at += size + 12
            continue
        name = places.get(owner)
        if name is None:
            name = owner
            _remember(places, owner, at)
        at += len(name) + code.RECORD.size
        if kind == code.CNAME:
            _remember(places, rdata.lower(), at)
        parts += (name, code.RECORD.pack(kind, code.IN, ttl, len(rdata)), rdata)
        at += len(rdata)
    return b"".join(parts)


def _remember(places: dict[bytes, bytes], name: bytes, at: int) -> None:
    if at < 0x4000 and len(name) > 2:
        places.setdefault(name, (0xC000 | at).to_bytes(2, "big"))


def _opt(query: Query, rcode: int, ede: int | None, text: str) -> bytes:
    if not query.edns:
        return b""
    if ede is None and rcode < 16:
        return code.NO_OPTIONS[query.dnssec]
    error = b""
    if ede is not None:
        said = text.encode()
        error = _EDE.pack(_EDE_OPTION, 2 + len(said), ede) + said
    flags = rcode >> 4 << 24 | (code.DO if query.dnssec else 0)
    return code.OPT_RECORD.pack(0, code.OPT, code.OUR_SIZE, flags, len(error)) + error
