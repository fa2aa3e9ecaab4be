"""Questions of DNS: what a client asks, and what is asked of an upstream for it.

Bytes come from whoever can send us a packet.  What is wrong with them is Malformed, and nothing else is raised.
Here and in `dns_answers` values are tuples, not dataclasses: on this path making them is what costs.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from penstock.core import dns_codes as code
from penstock.core.dns_codes import HEADER_SIZE
from penstock.core.dns_names import Malformed, name_end, text_of, wire_of

MAX_OPTIONS = 32
"""EDNS options of one message.  Over TCP there is room for 16,000, and each costs a step."""


class Query(NamedTuple):
    """One question of a client."""

    id: int
    flags: int  # the header's, as the client wrote them
    question: bytes  # name, type and class as the client wrote them; empty when there is no such thing
    name: str  # lower case, no dot at the end; "" is the root
    plain: bool  # False: other bytes than letters, digits, - and _, written \DDD in `name`; no rule allows it
    qtype: int
    edns: bool
    size: int  # bytes that the client takes over UDP, 512 or more
    dnssec: bool  # DO

    @property
    def recursion(self) -> bool:
        """RD."""
        return bool(self.flags & code.RD)

    @property
    def authentic(self) -> bool:
        """AD: the client wants to know whether the answer was validated."""
        return bool(self.flags & code.AD)

    @property
    def checking_disabled(self) -> bool:
        """CD."""
        return bool(self.flags & code.CD)


class NotTaken(Malformed):
    """Bytes that are no question we take, and whose sender can be told: `build_reply(e.query, e.rcode)`."""

    def __init__(self, query: Query, rcode: int, message: str) -> None:
        super().__init__(message)
        self.query = query
        self.rcode = rcode


def parse_query(data: bytes) -> Query:
    """The question in a message from a client.

    Raises NotTaken for what deserves an answer (FORMERR, NOTIMP, REFUSED, BADVERS), and Malformed proper
    for what deserves none: shorter than a header, or itself an answer.
    """
    if len(data) < HEADER_SIZE:
        raise Malformed("shorter than a header")
    id, flags, questions, answers, authorities, additional = code.HEADER.unpack_from(data)
    if flags & code.QR:
        raise Malformed("an answer, not a question")
    if flags & code.OPCODE:
        raise NotTaken(_nothing(id, flags), code.NOTIMP, "an operation other than a query")
    if questions != 1:
        raise NotTaken(_nothing(id, flags), code.FORMERR, "not exactly one question")
    try:
        end = name_end(data, HEADER_SIZE)
        qtype, qclass = code.TYPE_CLASS.unpack_from(data, end)
        name, plain = text_of(data[HEADER_SIZE:end].lower())
        end += 4
        question = data[HEADER_SIZE:end]
        query = Query(id, flags, question, name, plain, qtype, False, code.PLAIN_SIZE, False)
        if qclass != code.IN:
            raise NotTaken(query, code.REFUSED, "a class other than IN")
        if answers or authorities:
            rcode = code.REFUSED if qtype == code.IXFR else code.FORMERR
            raise NotTaken(query, rcode, "a question with answers in it")
        if not additional and len(data) == end:
            return query
        return _with_edns(query, data, end, additional)
    except (IndexError, struct.error) as e:
        raise NotTaken(_nothing(id, flags), code.FORMERR, "cut off inside the question") from e
    except NotTaken:
        raise
    except Malformed as e:
        raise NotTaken(_nothing(id, flags), code.FORMERR, str(e)) from e


def _nothing(id: int, flags: int) -> Query:
    return Query(id, flags, b"", "", False, 0, False, code.PLAIN_SIZE, False)


def _with_edns(query: Query, data: bytes, at: int, additional: int) -> Query:
    """One OPT record may follow the question, and nothing may follow that."""
    if additional != 1 or data[at] != 0:
        raise NotTaken(query, code.FORMERR, "more than EDNS in a question")
    kind, size, ttl, length = code.RECORD.unpack_from(data, at + 1)
    at += 11
    if kind != code.OPT or at + length != len(data):
        raise NotTaken(query, code.FORMERR, "more than EDNS in a question")
    if length:
        check_options(data, at, len(data))
    edns = Query(*query[:6], True, max(size, code.PLAIN_SIZE), bool(ttl & code.DO))
    if ttl & 0xFF0000:
        raise NotTaken(edns, code.BADVERS, "a version of EDNS other than 0")
    return edns


def check_options(data: bytes, at: int, end: int) -> None:
    """Raises Malformed, or struct.error, where the options of an OPT record do not fill it, or are very many."""
    for _ in range(MAX_OPTIONS):
        if at >= end:
            break
        at += 4 + code.OPTION.unpack_from(data, at)[1]
    if at != end:
        raise Malformed("EDNS options that do not fill their record, or too many")


def build_query(
    id: int,
    name: str,
    qtype: int,
    *,
    recursion: bool = True,
    checking_disabled: bool = False,
    authentic: bool = False,
    dnssec: bool = False,
    edns: bool = True,
) -> bytes:
    """A question for an upstream: `name` as a plain Query has it, else ValueError.

    EDNS says 1232 bytes and DO as asked, and has no options: nothing of the client goes out but the question.
    """
    flags = (
        (code.RD if recursion else 0)
        | (code.CD if checking_disabled else 0)
        | (code.AD if authentic else 0)
    )
    head = code.HEADER.pack(id, flags, 1, 0, 0, int(edns))
    question = wire_of(name) + code.TYPE_CLASS.pack(qtype, code.IN)
    return head + question + code.NO_OPTIONS[dnssec] if edns else head + question
