"""The daemon's end of the link, with a resolver that is played, and files for listeners."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from penstock.core import effects, events
from penstock.core import resolver_wire as wire
from penstock.daemon import resolver_link
from penstock.daemon.resolver_link import ResolverLink
from penstock.errors import PenstockError
from penstock.kernel.listeners import Listeners

LEARN = wire.Learn(1, 1, "a", "hub.example", ((ip_address("192.0.2.1"), 60),))
REFUSED = wire.Refused(2, "a", "stranger.example", "A", "name", "udp", (ip_address("127.0.0.1"), 4711))


@dataclass
class Played:
    """The resolvers that were started, one after the other: our end of each link."""

    ends: list[socket.socket] = field(default_factory=list)
    closed: int = 0
    processes: list[Process] = field(default_factory=list)
    fails: int = 0  # so many starts from now on
    error: OSError | None = None  # of whatever is said to the one that is started next, but of descriptors

    def spawn(self, directory: Path) -> Any:
        if self.fails:
            self.fails -= 1
            raise PenstockError("no memory")
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        error, self.error = self.error, None
        self.processes.append(Process(self, ours if error is None else Deaf(ours, error)))
        return self.processes[-1]

    def said(self) -> list[wire.ToResolver]:
        """What the last one was told so far."""
        frames = wire.Frames(wire.MAX_TO_RESOLVER)
        return [wire.decode_to_resolver(frame) for frame in frames.feed(self.take())]

    def take(self, number: int = -1) -> bytes:
        """What the last one was sent so far, or a part of it."""
        self.ends[number].setblocking(False)
        try:
            return socket.recv_fds(self.ends[number], 1 << 20, 64)[0]
        except BlockingIOError:
            return b""


class Deaf(socket.socket):
    """Takes nothing."""

    def __init__(self, other: socket.socket, error: OSError) -> None:
        super().__init__(fileno=other.detach())
        self.error = error

    def send(self, *_: Any) -> int:
        raise self.error


@dataclass
class Process:
    played: Played
    link: socket.socket

    def close(self) -> None:
        self.link.close()
        self.played.closed += 1


@dataclass
class Scene:
    link: ResolverLink
    played: Played
    heard: list[Any]
    opened: list[tuple[str, ...]]
    done: asyncio.Event  # what comes of what the resolver says is; it is set unless a test clears it

    def said(self) -> list[wire.FromResolver]:
        """By the resolvers, all of it."""
        return [m for event in self.heard if isinstance(event, events.FromResolver) for m in event.messages]

    def changes(self) -> list[bool]:
        """Whether there was a resolver."""
        return [event.up for event in self.heard if isinstance(event, events.ResolverChanged)]

    def listeners(self) -> set[str]:
        return set(self.link._listeners)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - it is somebody else's
                await asyncio.sleep(0.005)


def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Scene], Awaitable[None]]) -> None:
    """Run `act` on a link whose resolver is played."""
    played = Played()
    asked: list[tuple[str, ...]] = []
    ports = itertools.count(40_000)

    def opened(directory: Path, names: Sequence[str]) -> dict[str, Listeners]:
        asked.append(tuple(names))
        return {name: Listeners(next(ports), (os.open(os.devnull, os.O_RDONLY),)) for name in names}

    monkeypatch.setattr(resolver_link, "CONFIGURING", 0.01)  # those that are played say nothing by themselves
    monkeypatch.setattr(resolver_link, "spawn", played.spawn)
    monkeypatch.setattr(resolver_link, "open_listeners", opened)
    monkeypatch.setattr("penstock.kernel.cgroup.make", lambda *_, **__: None)

    async def whole() -> None:
        heard: list[Any] = []
        done = asyncio.Event()
        done.set()

        async def in_kernel(work: Callable[[], Any]) -> Any:
            return work()

        async def come_of_it() -> None:
            await done.wait()

        def feed(event: events.Event) -> asyncio.Task[None] | None:
            heard.append(event)
            return tasks.create_task(come_of_it()) if isinstance(event, events.FromResolver) else None

        async with asyncio.TaskGroup() as tasks:
            link = ResolverLink(tasks, tmp_path, in_kernel, feed, lambda refused: None)
            await act(Scene(link, played, heard, asked, done))
            link.close()

    asyncio.run(whole())


def configure(*workloads: str) -> wire.Configure:
    return wire.Configure(1, (), (), tuple(wire.Names(name, "enforce") for name in workloads))


def test_what_is_in_force_closes_nothing_of_a_policy_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        await scene.link.configure(configure("a"))
        await scene.link.listen(effects.Listen(2, ("a", "b")))
        await scene.link.configure(configure("a"))  # as when the resolver was started anew meanwhile
        assert scene.listeners() == {"a", "b"}
        await scene.link.configure(configure("a", "b"))
        await scene.link.listen(effects.Listen(3, ("b",)))
        assert scene.listeners() == {"a", "b"}  # if that policy is refused, the one before it needs both
        await scene.link.configure(configure("b"))
        assert scene.listeners() == {"b"}
        await scene.link.configure(configure())
        assert scene.listeners() == set()
        assert scene.played.closed == 1

    play(tmp_path, monkeypatch, act)


def test_an_answer_does_not_wait_for_what_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.played.ends[-1].send(wire.encode(REFUSED) + wire.encode(LEARN))
        await scene.until(lambda: len(scene.heard) == 3)
        messages = [event.messages for event in scene.heard if isinstance(event, events.FromResolver)]
        assert messages == [(LEARN,), (REFUSED,)]

    play(tmp_path, monkeypatch, act)


def test_one_that_hangs_is_ended_and_another_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_link, "SILENCE", 0.1)

    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        for _ in range(4):  # as long as it says something it lives
            scene.played.ends[-1].send(wire.encode(wire.Alive()))
            await asyncio.sleep(0.05)
        assert scene.played.closed == 0
        await scene.until(lambda: len(scene.played.ends) == 2)
        assert scene.changes() == [True, False, True]
        assert wire.Listen("a") in scene.played.said()

    play(tmp_path, monkeypatch, act)


def test_two_who_start_one_leave_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer's turn comes while an operation waits for the kernel's thread, or the other way round."""

    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        free, kernel = asyncio.Event(), scene.link._in_kernel

        async def busy(work: Callable[[], Any]) -> Any:
            await free.wait()
            return await kernel(work)

        scene.link._in_kernel = busy
        scene.played.ends[0].close()
        await scene.until(lambda: scene.changes() == [True, False])
        scene.link._restart()
        listens = asyncio.ensure_future(scene.link.listen(effects.Listen(2, ("a",))))
        await asyncio.sleep(0.01)
        free.set()
        assert (await listens).ports == {"a": 40_000}
        await scene.until(lambda: len(scene.played.ends) == 3)
        await scene.until(lambda: scene.played.closed == 2)
        assert scene.changes() == [True, False, True]
        (lives,) = (n for n, process in enumerate(scene.played.processes) if process.link.fileno() >= 0)
        told, data = wire.Frames(wire.MAX_TO_RESOLVER), b""
        while chunk := scene.played.take(lives):
            data += chunk
        listened = [wire.decode_to_resolver(frame) for frame in told.feed(data)]
        assert listened == [wire.Listen("a")]

    play(tmp_path, monkeypatch, act)


def test_listeners_that_were_closed_are_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver takes nothing for a while; their numbers are those of other files of the daemon by then."""
    rules = tuple(wire.NameRuleText(f"n{number}.example", False) for number in range(50_000))

    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        await scene.link.configure(wire.Configure(1, (), (), (wire.Names("a", "enforce", rules),)))
        await scene.link.listen(effects.Listen(2, ("a", "b", "c")))
        await scene.link.configure(configure("a", "b", "c"))
        await scene.link.listen(effects.Listen(3, ("a", "c")))
        await scene.link.configure(configure("a", "c"))
        secret = tmp_path / "secret"
        secret.touch()
        opened = [os.open(secret, os.O_RDWR) for _ in range(4)]
        end = scene.played.ends[-1]
        end.setblocking(False)
        frames, passed, messages = wire.Frames(wire.MAX_TO_RESOLVER), list[int](), list[wire.ToResolver]()
        while not messages or messages[-1] != configure("a", "c"):
            try:
                data, descriptors, _, _ = socket.recv_fds(end, 1 << 20, 64)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            passed += descriptors
            messages += map(wire.decode_to_resolver, frames.feed(data))
        listened = [message.workload for message in messages if isinstance(message, wire.Listen)]
        assert (listened, len(passed)) == (["a", "c"], 2)
        assert {os.readlink(f"/proc/self/fd/{number}") for number in passed} == {os.devnull}
        for number in (*opened, *passed):
            os.close(number)

    play(tmp_path, monkeypatch, act)


@pytest.mark.parametrize("rubbish", [b"\x00\x00\x00\x02[]", b"\xff" * 8, b"\x00\x00\x00\x01x"])
def test_one_that_makes_no_sense_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rubbish: bytes) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.played.ends[-1].send(rubbish)
        await scene.until(lambda: len(scene.played.ends) == 2)
        assert scene.played.closed == 1

    play(tmp_path, monkeypatch, act)


def test_one_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(scene: Scene) -> None:
        scene.played.fails = 2
        listening = await scene.link.listen(effects.Listen(1, ("a",)))
        assert listening.error == "no memory"
        assert listening.ports == {"a": 40_000}
        await scene.until(lambda: bool(scene.played.ends))
        assert wire.Listen("a") in scene.played.said()

    play(tmp_path, monkeypatch, act)


def test_who_is_not_needed_any_more_is_told_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go on for some seconds where it cannot be killed."""

    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        await scene.link.configure(configure("a"))
        assert wire.Leave() not in scene.played.said()
        await scene.link.configure(configure())
        assert scene.played.said()[-1] == wire.Leave()

    play(tmp_path, monkeypatch, act)


@pytest.mark.parametrize("says", [wire.encode(wire.Configured(1)), b""], ids=["that it does", "nothing: it ends"])
def test_what_comes_next_waits_until_the_resolver_goes_by_what_is_in_force(
    says: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(scene: Scene) -> None:
        monkeypatch.setattr(resolver_link, "CONFIGURING", 60.0)
        await scene.link.listen(effects.Listen(1, ("a",)))
        waits = asyncio.ensure_future(scene.link.configure(configure("a")))
        scene.played.ends[-1].send(wire.encode(wire.Configured(7)) + wire.encode(LEARN))
        await scene.until(lambda: scene.said() == [LEARN])  # and not that it goes by a policy of before
        await asyncio.sleep(0.02)
        assert not waits.done()
        if says:
            scene.played.ends[-1].send(says)
        else:
            scene.played.ends[-1].close()
        async with asyncio.timeout(5):
            await waits
        assert scene.said() == [LEARN]  # the rest is between these two

    play(tmp_path, monkeypatch, act)


def test_one_that_hangs_is_not_waited_for_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        async with asyncio.timeout(5):
            await scene.link.configure(configure("a"))
        scene.played.ends[-1].send(wire.encode(wire.Configured(1)) + wire.encode(LEARN))  # now it comes
        await scene.until(lambda: scene.said() == [LEARN])

    play(tmp_path, monkeypatch, act)


def test_in_the_midst_of_a_message_it_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        rules = tuple(wire.NameRuleText(f"n{number}.example", False) for number in range(50_000))
        await scene.link.configure(wire.Configure(1, (), (), (wire.Names("a", "enforce", rules),)))
        end = scene.played.ends[-1]
        end.setblocking(False)
        received = b""
        with contextlib.suppress(BlockingIOError):
            while data := end.recv(1 << 20):
                received += data
        await scene.link.configure(configure())  # there is room again, and nobody has used it yet
        while data := end.recv(1 << 20):
            received += data
        assert len(received) > 1 << 16
        assert wire.encode(wire.Leave()) not in received

    play(tmp_path, monkeypatch, act)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EPIPE], ids=["ENOBUFS", "EPIPE"])
def test_one_that_cannot_be_told_is_ended(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would be settled any more, while it goes on to say that it is there."""

    async def act(scene: Scene) -> None:
        scene.played.error = OSError(number, os.strerror(number))
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.link.settle((1,), ok=True)
        scene.link.settle((2,), ok=True)
        await scene.until(lambda: len(scene.played.ends) == 2)
        assert scene.played.closed == 1
        assert scene.changes() == [True, False, True]
        scene.link.settle((3,), ok=True)
        assert scene.played.said() == [wire.Listen("a")]
        assert scene.played.said() == [wire.Settled((3,), True)]

    play(tmp_path, monkeypatch, act)


def test_one_that_cannot_be_told_when_it_is_ended_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(scene: Scene) -> None:
        scene.played.error = OSError(errno.ENOBUFS, "no buffers")
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.link.settle((1,), ok=True)
        scene.link.close()
        await asyncio.sleep(0.01)
        assert (len(scene.played.ends), scene.played.closed) == (1, 1)
        assert scene.changes() == [True]

    play(tmp_path, monkeypatch, act)


def test_one_that_takes_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_link, "MAX_UNTAKEN", 20_000)
    rules = tuple(wire.NameRuleText(f"n{number}.example", False) for number in range(50_000))
    long = wire.Configure(1, (), (), (wire.Names("a", "enforce", rules),))
    ids = tuple(range(1000))
    size = len(wire.encode(wire.Settled(ids, True)))

    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        for _ in range(2):
            await scene.link.configure(long)
            for _ in range(20_000 // size):
                scene.link.settle(ids, ok=True)
            assert scene.played.closed == 0
            await scene.until(lambda: scene.played.take() == b"" and not scene.link._waiting)
        await scene.link.configure(long)
        for _ in range(20_000 // size + 1):
            scene.link.settle(ids, ok=True)
        assert (scene.played.closed, scene.changes()) == (1, [True, False])
        scene.link.settle(ids, ok=True)  # to nobody
        await scene.until(lambda: len(scene.played.ends) == 2)
        assert (scene.played.closed, scene.changes()) == (1, [True, False, True])

    play(tmp_path, monkeypatch, act)


@pytest.mark.parametrize("more", [(), (LEARN, REFUSED)], ids=["nothing", "more"])
def test_no_more_is_read_than_the_kernel_takes(
    more: Sequence[wire.FromResolver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who is not listened to is not taken for one that hangs."""
    monkeypatch.setattr(resolver_link, "SILENCE", 0.2)

    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.done.clear()
        for number in range(resolver_link.MAX_LEARNING):
            scene.played.ends[-1].send(wire.encode(LEARN))
            await scene.until(lambda number=number: len(scene.said()) > number)  # type: ignore[misc]
        scene.played.ends[-1].send(b"".join(map(wire.encode, more)))
        await asyncio.sleep(0.3)
        assert len(scene.said()) == resolver_link.MAX_LEARNING
        assert scene.changes() == [True]
        scene.done.set()
        await scene.until(lambda: len(scene.said()) == resolver_link.MAX_LEARNING + len(more))
        await scene.until(lambda: scene.changes() == [True, False, True])  # now it hangs

    play(tmp_path, monkeypatch, act)


def test_a_log_that_hangs_keeps_nobody_from_being_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.done.clear()
        for number in range(2 * resolver_link.MAX_LEARNING):
            scene.played.ends[-1].send(wire.encode(REFUSED))
            await scene.until(lambda number=number: len(scene.said()) > number)  # type: ignore[misc]
        scene.played.ends[-1].send(wire.encode(LEARN))
        await scene.until(lambda: scene.said()[-1] == LEARN)
        scene.done.set()

    play(tmp_path, monkeypatch, act)


def test_a_daemon_that_ends_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair may be under way: a power-off removes the slices of workloads.  It would wait for that resolver."""

    async def act(scene: Scene) -> None:
        def spawn_meanwhile(directory: Path) -> Any:
            scene.link.close()
            return scene.played.spawn(directory)

        monkeypatch.setattr(resolver_link, "spawn", spawn_meanwhile)
        assert (await scene.link.listen(effects.Listen(1, ("a",)))).error == ""
        assert (len(scene.played.ends), scene.played.closed) == (1, 1)
        await scene.link.listen(effects.Listen(2, ("a",)))
        assert len(scene.played.ends) == 1

    play(tmp_path, monkeypatch, act)


def test_who_is_listened_for_stays_where_he_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is written down for the next daemon, who may listen anywhere."""

    async def act(scene: Scene) -> None:
        assert (await scene.link.listen(effects.Listen(1, ("a",)))).ports == {"a": 40_000}
        assert (await scene.link.listen(effects.Listen(2, ("b", "a")))).ports == {"a": 40_000, "b": 40_001}
        assert (await scene.link.listen(effects.Listen(3, ("a",)))).ports == {"a": 40_000}
        assert scene.opened == [("a",), ("b",)]

    play(tmp_path, monkeypatch, act)
    assert list(tmp_path.iterdir()) == []
