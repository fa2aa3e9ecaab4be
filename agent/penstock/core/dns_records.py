"""What records hold, type by type: their bytes checked to the last one, names in them made whole.

Only types that an answer of ours may hold are kept (`RDATA`).  Any other is skipped: what is not understood is
not passed on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial

from penstock.core import dns_codes as code
from penstock.core.dns_names import Malformed, OverBound, Steps, name_end, read_name

Reader = Callable[[bytes, int, int, Steps], bytes]
"""(message, first byte, byte after the last, steps) -> the data without compression; Malformed, IndexError."""

_DIGEST_SIZES = {1: 20, 2: 32, 3: 32, 4: 48}  # of DS records, by kind of digest
_MANDATORY, _ALPN, _NO_DEFAULT_ALPN, _PORT, _HINT4, _ECH, _HINT6 = range(7)  # parameters of SVCB, RFC 9460
_OHTTP = 8
_HINTS = frozenset({_HINT4, _HINT6})
MAX_PARAMETERS = 32
"""Of one service; IANA knows a dozen."""

SERVICE, PARAMETER, WINDOW = 50, 20, 2
"""Steps of reading one, and of writing it without hints."""


def without_hints(rdata: bytes) -> bytes:
    """The data of a SVCB or HTTPS record, as RDATA read it, without the addresses it would tell past us."""
    at = name_end(rdata, 2)
    if rdata[:2] == b"\0\0":
        return rdata[:at]  # an alias: parameters mean nothing
    parameters = _parameters(rdata, at, len(rdata))
    if not _HINTS & parameters.keys():
        return rdata
    if _MANDATORY in parameters:
        keys = [key for key in _numbers(parameters.pop(_MANDATORY)) if key not in _HINTS]
        if keys:
            parameters[_MANDATORY] = struct.pack(f">{len(keys)}H", *keys)
    kept = sorted(parameters.keys() - _HINTS)
    return rdata[:at] + b"".join(
        struct.pack(">HH", key, len(parameters[key])) + parameters[key] for key in kept
    )


def _fixed(size: int, data: bytes, start: int, end: int, steps: Steps) -> bytes:
    if end - start != size:
        raise Malformed("a record of a wrong length")
    return data[start:end]


def _with_names(before: int, names: int, after: int, data: bytes, start: int, end: int, steps: Steps) -> bytes:
    """Fixed bytes, then names that may be compressed, then fixed bytes."""
    at = start + before
    rdata = data[start:at]
    for _ in range(names):
        name, at = read_name(data, at, steps)
        rdata += name
    if at + after != end:
        raise Malformed("a record of a wrong length")
    return rdata + data[at:end]


def _texts(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    at, texts = start, 0
    while at < end and texts <= steps.left:
        at += data[at] + 1
        texts += 1
    steps.take(texts)
    if at != end or start == end:
        raise Malformed("texts that do not fill their record")
    return data[start:end]


def _digest(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    size = end - start - 4
    if size < 1 or _DIGEST_SIZES.get(data[start + 3], size) != size or data[start + 3] == 0:
        raise Malformed("a digest of a wrong length")
    return data[start:end]


def _key(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    if end - start < 5:
        raise Malformed("a key of a wrong length")
    return data[start:end]


def _signature(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    if end - start < 20 or _name_end(data, start + 18, steps) >= end:
        raise Malformed("a signature of a wrong length")
    return data[start:end]


def _next_name(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    _check_types(data, _name_end(data, start, steps), end, steps)
    return data[start:end]


def _name_end(data: bytes, start: int, steps: Steps) -> int:
    end = name_end(data, start)
    steps.take((end - start) // 2)
    return end


def _next_hash(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    at = start + 5 + data[start + 4]  # the salt
    if at >= end or not data[at]:
        raise Malformed("a hash of a wrong length")
    _check_types(data, at + 1 + data[at], end, steps)
    return data[start:end]


def _check_types(data: bytes, at: int, end: int, steps: Steps) -> None:
    """A set of types as bits, in windows that rise and do not end with a zero (RFC 4034, 4.1.2)."""
    last, start = -1, at
    while at < end:
        window, length = data[at], data[at + 1]
        at += 2 + length
        if window <= last or not 1 <= length <= 32 or not data[at - 1]:
            raise Malformed("a set of types that is none")
        last = window
    steps.take((at - start) // 3 * WINDOW)
    if at != end:
        raise Malformed("a set of types of a wrong length")


def _service(data: bytes, start: int, end: int, steps: Steps) -> bytes:
    at = name_end(data, start + 2)
    if at > end:
        raise Malformed("a record of a wrong length")
    parameters = _parameters(data, at, end)
    steps.take(SERVICE + len(parameters) * PARAMETER + (end - start) // 2)
    if _NO_DEFAULT_ALPN in parameters and _ALPN not in parameters:
        raise Malformed("no default protocol and no other")
    if not parameters.keys() >= set(_numbers(parameters.get(_MANDATORY, b""))):
        raise Malformed("a mandatory parameter is missing")
    for key, value in parameters.items():
        if key in _PARAMETERS and not _PARAMETERS[key](value):
            raise Malformed(f"parameter {key} of a service has a wrong value")
    return data[start:end]


def _parameters(data: bytes, at: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    last = -1
    while at < end:
        key, length = struct.unpack_from(">HH", data, at)
        at += 4 + length
        if key <= last:
            raise Malformed("parameters of a service that do not rise")
        if len(found) == MAX_PARAMETERS:
            raise OverBound("a service with more parameters than there are")
        last = key
        found[key] = data[at - length : at]
    if at != end:
        raise Malformed("parameters of a service that do not fit")
    return found


def _numbers(value: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(value) // 2}H", value)


def _is_mandatory(value: bytes) -> bool:
    if not value or len(value) % 2:
        return False
    keys = _numbers(value)
    return keys[0] != 0 and list(keys) == sorted(set(keys))


def _is_alpn(value: bytes) -> bool:
    at = 0
    while at < len(value):
        if not value[at]:
            return False
        at += value[at] + 1
    return bool(value) and at == len(value)


_PARAMETERS: Mapping[int, Callable[[bytes], bool]] = {
    _MANDATORY: _is_mandatory,
    _ALPN: _is_alpn,
    _NO_DEFAULT_ALPN: lambda value: not value,
    _PORT: lambda value: len(value) == 2,
    _HINT4: lambda value: bool(value) and len(value) % 4 == 0,
    _ECH: lambda value: len(value) >= 6 and int.from_bytes(value[:2], "big") == len(value) - 2,
    _HINT6: lambda value: bool(value) and len(value) % 16 == 0,
    _OHTTP: lambda value: not value,
}

_one_name = partial(_with_names, 0, 1, 0)

RDATA: Mapping[int, Reader] = {
    code.A: partial(_fixed, 4),
    code.AAAA: partial(_fixed, 16),
    code.NS: _one_name,
    code.CNAME: _one_name,
    code.PTR: _one_name,
    code.DNAME: _one_name,
    code.SOA: partial(_with_names, 0, 2, 20),
    code.MX: partial(_with_names, 2, 1, 0),
    code.SRV: partial(_with_names, 6, 1, 0),
    code.TXT: _texts,
    code.DS: _digest,
    code.DNSKEY: _key,
    code.RRSIG: _signature,
    code.NSEC: _next_name,
    code.NSEC3: _next_hash,
    code.SVCB: _service,
    code.HTTPS: _service,
}
