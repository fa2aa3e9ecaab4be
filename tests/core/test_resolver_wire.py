"""Messages between daemon and resolver: whole, exact, and ValueError for anything else."""

from __future__ import annotations

import contextlib
import json
import random
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import resolver_wire as wire

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
RULES = (
    wire.NameRuleText("hub.example", False),
    wire.NameRuleText("*.cdn.example", True, (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")), 1e9),
)
NAMES = wire.Names("open-webui", "enforce", RULES)
CONFIGURE = wire.Configure(7, ((V4, 53), (V6, 5353)), ("corp.example",), (NAMES, wire.Names("w", "lock")))
LEARN = wire.Learn(1, 7, "w", "hub.example", ((V4, 60), (V6, 0)))
REFUSED = wire.Refused(2, "w", "evil.example", "A", "name", "udp", (V6, 40000), 3)
TO_RESOLVER: list[wire.ToResolver] = [
    CONFIGURE,
    wire.Configure(0, (), (), ()),
    wire.Listen("w"),
    wire.Unlisten("w"),
    wire.Leave(),
    wire.Settled((1, 2, 3), True),
    wire.Settled((), False),
]
TO_DAEMON: list[wire.FromResolver] = [
    LEARN,
    REFUSED,
    wire.Observed("w", "other.example", (V4,), 3),
    wire.Trouble("upstream", "", "no answer from 192.0.2.1"),
    wire.Alive(),
    wire.Configured(7),
]


def body(message: wire.ToResolver | wire.FromResolver) -> bytes:
    return wire.encode(message)[wire.HEADER :]


def changed(message: wire.FromResolver, at: int, value: Any) -> bytes:
    values = json.loads(body(message))
    values[at] = value
    return json.dumps(values).encode()


@pytest.mark.parametrize("message", TO_RESOLVER)
def test_what_the_daemon_says_comes_back(message: wire.ToResolver) -> None:
    assert wire.decode_to_resolver(body(message)) == message


@pytest.mark.parametrize("message", TO_DAEMON)
def test_what_the_resolver_says_comes_back(message: wire.FromResolver) -> None:
    assert wire.decode_from_resolver(body(message)) == message


def test_neither_says_what_the_other_may() -> None:
    for to_resolver in TO_RESOLVER:
        with pytest.raises(ValueError, match="no message of a resolver"):
            wire.decode_from_resolver(body(to_resolver))
    for to_daemon in TO_DAEMON:
        with pytest.raises(ValueError, match="no message of a daemon"):
            wire.decode_to_resolver(body(to_daemon))


def test_a_configuration_is_the_same_under_another_number() -> None:
    assert wire.renumbered(CONFIGURE, 8).generation == 8
    assert wire.renumbered(wire.renumbered(CONFIGURE, 8), 7) == CONFIGURE


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b'"Learn"',
        b"[" * 100_000,
        b"\xff",
        b"1" * 5000,
        b'["Learn"]',
        b'["Learn",1,7,"w","hub.example"]',
        b'["Learn",1,7,"w","hub.example",[],0]',
        changed(LEARN, 1, -1),
        changed(LEARN, 1, True),
        changed(LEARN, 1, 1.0),
        changed(LEARN, 1, 1 << 53),
        changed(LEARN, 3, None),
        changed(LEARN, 4, "x" * 256),
        changed(LEARN, 4, "bell\x07"),
        changed(LEARN, 4, "m\xfcller.example"),
        changed(LEARN, 4, "\ud800"),
        changed(LEARN, 5, "192.0.2.1"),
        changed(LEARN, 5, ["192.0.2.1"]),
        changed(LEARN, 5, [["192.0.2.1"]]),
        changed(LEARN, 5, [["192.0.2.256", 1]]),
        changed(LEARN, 5, [[1, 1]]),
        changed(LEARN, 5, [["fe80::1%eth0", 1]]),
        changed(LEARN, 5, [["192.0.2.1", 1 << 31]]),
        changed(LEARN, 5, [["192.0.2.1", 1]] * (wire.MAX_ADDRESSES + 1)),
        changed(REFUSED, 6, "sctp"),
        changed(REFUSED, 7, ["192.0.2.1", 65536]),
        changed(REFUSED, 7, None),
        changed(REFUSED, 8, wire.MAX_COUNT + 1),
        changed(TO_DAEMON[2], 3, ["192.0.2.1"] * (wire.MAX_ADDRESSES + 1)),
        changed(TO_DAEMON[3], 3, "x" * (wire.MAX_TEXT + 1)),
        changed(TO_DAEMON[2], 4, wire.MAX_COUNT + 1),
        b'["Alive",1]',
    ],
)
def test_what_makes_no_sense_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.decode_from_resolver(frame)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_value_error(frame: bytes) -> None:
    for decode in (wire.decode_from_resolver, wire.decode_to_resolver):
        with contextlib.suppress(ValueError):
            decode(frame)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=20))
def test_any_values_are_a_message_or_a_value_error(values: Any) -> None:
    for word in ("Learn", "Refused", "Observed", "Trouble", "Alive", "Configured"):
        frame = json.dumps([word, *(values if isinstance(values, list) else [values])]).encode()
        with contextlib.suppress(ValueError):
            wire.decode_from_resolver(frame)


def test_frames_come_whole_however_they_are_cut() -> None:
    stream = b"".join(map(wire.encode, TO_DAEMON)) * 3
    for seed in range(50):
        draw = random.Random(seed)
        frames, found, at = wire.Frames(wire.MAX_TO_DAEMON), [], 0
        while at < len(stream):
            size = draw.choice((1, 2, 5, 100, 5000))
            found += frames.feed(stream[at : at + size])
            at += size
        assert [wire.decode_from_resolver(frame) for frame in found] == TO_DAEMON * 3


def test_a_frame_that_is_too_long_is_refused_by_its_length() -> None:
    frames = wire.Frames(100)
    assert frames.feed((100).to_bytes(4) + b"x" * 100) == [b"x" * 100]
    with pytest.raises(ValueError, match="too long"):
        frames.feed((101).to_bytes(4))


def test_the_longest_message_of_a_resolver_fits_its_frame() -> None:
    address = ip_address("2001:db8:1111:2222:3333:4444:5555:6666")
    longest = "x" * wire.MAX_NAME
    learn = wire.Learn(wire.MAX_NUMBER, wire.MAX_NUMBER, longest, longest, ((address, wire.MAX_TTL),) * 64)
    assert wire.decode_from_resolver(body(learn)) == learn
    assert len(body(learn)) < wire.MAX_TO_DAEMON
