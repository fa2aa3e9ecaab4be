"""The link: batches out, frames and descriptors in, and its end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from penstock.core import resolver_wire as wire
from penstock.core.resolver_wire import Alive, Configured, ToResolver
from penstock.errors import PenstockError
from penstock.resolver import link
from penstock.resolver.link import Link
from penstock.resolver.loop import Deadlines, Loop


class Ends:
    """A link in this process, and the daemon's end of it."""

    def __init__(self) -> None:
        self.daemon, ours = socket.socketpair()
        self.ours = ours
        self.daemon.settimeout(5)
        self.faults: list[Exception] = []
        self.loop = Loop(self.faults.append)
        self.taken: list[tuple[ToResolver, list[int]]] = []
        self.ended = 0
        self.link = Link(self.loop, ours, lambda message, passed: self.taken.append((message, passed)), self._end)
        self._turns: Deadlines[int] = self.loop.deadlines(0.01, lambda key: None)

    def _end(self) -> None:
        self.ended += 1

    def turn(self) -> None:
        """A round that ends soon, whatever happens."""
        self._turns.add(1, self.loop.now)
        self.loop.step()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    for sock in (made.daemon, made.ours):
        sock.close()
    for _, passed in made.taken:
        for descriptor in passed:
            os.close(descriptor)


def inodes(descriptors: list[int]) -> list[int]:
    return [os.fstat(descriptor).st_ino for descriptor in descriptors]


def test_all_of_a_round_is_one_write(ends: Ends) -> None:
    messages = [Configured(number) for number in range(3)]
    for message in messages:
        ends.link.say(message)
    ends.daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends.daemon.recv(1)
    ends.link.flush()
    assert ends.daemon.recv(10_000) == b"".join(map(wire.encode, messages))


def test_descriptors_come_with_their_message(ends: Ends) -> None:
    pipes = [os.pipe() for _ in range(4)]
    first, second = [end for pipe in pipes[:2] for end in pipe], [end for pipe in pipes[2:] for end in pipe]
    wanted = inodes(first), inodes(second)
    ends.daemon.sendall(wire.encode(wire.Settled((1,), True)))
    socket.send_fds(ends.daemon, [wire.encode(wire.Listen("a"))], first)
    ends.daemon.sendall(wire.encode(wire.Unlisten("x")))
    frame = wire.encode(wire.Listen("b"))
    socket.send_fds(ends.daemon, [frame[:3]], second)  # the rest of the frame comes later
    while len(ends.taken) < 3:
        ends.turn()
    ends.daemon.sendall(frame[3:])
    while len(ends.taken) < 4:
        ends.turn()
    for descriptor in first + second:
        os.close(descriptor)
    assert [message for message, _ in ends.taken] == [
        wire.Settled((1,), True), wire.Listen("a"), wire.Unlisten("x"), wire.Listen("b"),
    ]  # fmt: skip
    assert [len(passed) for _, passed in ends.taken] == [0, 4, 0, 4]
    assert (inodes(ends.taken[1][1]), inodes(ends.taken[3][1])) == wanted
    assert not any(os.get_inheritable(descriptor) for descriptor in ends.taken[1][1])


def test_a_large_message_comes_in_pieces(ends: Ends) -> None:
    rules = tuple(wire.NameRuleText(f"n{number}.example", False) for number in range(20_000))
    frame = wire.encode(wire.Configure(1, (), (), (wire.Names("w", "enforce", rules),)))
    assert len(frame) > 2 * link.RECEIVE
    ends.daemon.setblocking(False)
    while frame:
        frame = frame[ends.daemon.send(frame) :]
        ends.turn()
    while not ends.taken:
        ends.turn()
    assert isinstance(ends.taken[0][0], wire.Configure)
    assert ends.taken[0][0].workloads[0].rules == rules


def test_nothing_is_lost_when_the_daemon_does_not_read(ends: Ends) -> None:
    message = wire.Trouble("x" * 200, "y" * 200, "z" * 500)
    count = 0
    while not ends.link.congested:
        ends.link.say(message)
        ends.link.flush()
        count += 1
    assert count * len(wire.encode(message)) > link.CONGESTED
    frames, found = wire.Frames(wire.MAX_TO_DAEMON), 0
    while found < count:
        found += len(frames.feed(ends.daemon.recv(1 << 16)))
        ends.turn()
    assert not ends.link.congested
    ends.link.say(message)
    ends.link.flush()
    assert frames.feed(ends.daemon.recv(1 << 16)) == [wire.encode(message)[wire.HEADER :]]


def test_the_end_of_the_daemon_is_told_and_the_loop_goes_on(ends: Ends) -> None:
    ends.daemon.close()
    ends.turn()
    ends.turn()
    assert (ends.ended, ends.loop.ended, ends.loop.descriptors) == (1, False, 0)
    assert ends.faults == []


def test_it_is_told_too_when_it_is_written_to(ends: Ends) -> None:
    ends.daemon.close()
    for _ in range(2):
        ends.link.say(Alive())
        ends.link.flush()
    assert ends.ended == 1
    ends.turn()
    assert (ends.ended, ends.loop.descriptors, ends.faults) == (1, 0, [])


def test_the_end_is_told_once_when_something_is_still_to_be_written(ends: Ends) -> None:
    while not ends.link.congested:
        ends.link.say(wire.Trouble("x" * 200, "y" * 200, "z" * 500))
        ends.link.flush()
    ends.daemon.close()
    ends.turn()
    assert ends.ended == 1
    assert not ends.link.congested, "or look-ups would wait for what nobody reads"
    ends.turn()
    assert (ends.ended, ends.loop.descriptors, ends.faults) == (1, 0, [])


@pytest.mark.parametrize(
    "data", [b"\0\0\0\2[]", b"\xff\xff\xff\xff", b"\0\0\0\1x", wire.encode(Alive())], ids=repr
)
def test_what_makes_no_sense_ends_it_with_an_error(ends: Ends, data: bytes) -> None:
    ends.daemon.sendall(data)
    with pytest.raises(PenstockError, match="the daemon said what makes no sense"):
        ends.loop.run()
