"""The daemon's end of the link, with a resolver that is played, and files for listeners."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
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
    fails: int = 0  # so many starts from now on

    def spawn(self, directory: Path) -> Any:
        if self.fails:
            self.fails -= 1
            raise PenstockError("no memory")
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return Process(self, ours)

    def said(self) -> list[wire.ToResolver]:
        """What the last one was told so far."""
        self.ends[-1].setblocking(False)
        frames = wire.Frames(wire.MAX_TO_RESOLVER)
        try:
            data = socket.recv_fds(self.ends[-1], 1 << 20, 64)[0]
        except BlockingIOError:
            return []
        return [wire.decode_to_resolver(frame) for frame in frames.feed(data)]


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

    def listeners(self) -> set[str]:
        return set(self.link._listeners)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - it is somebody else's
                await asyncio.sleep(0.005)


def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Scene], Awaitable[None]]) -> None:
    """Run `act` on a link whose resolver is played."""
    played = Played()
    preferred: dict[str, int] = {}

    def opened(directory: Path, wanted: dict[str, int]) -> dict[str, Listeners]:
        preferred.update(wanted)
        return {
            name: Listeners(port or 40_000 + n, (os.open(os.devnull, os.O_RDONLY),))
            for n, (name, port) in enumerate(wanted.items())
        }

    monkeypatch.setattr(resolver_link, "spawn", played.spawn)
    monkeypatch.setattr(resolver_link, "open_listeners", opened)
    monkeypatch.setattr("penstock.kernel.cgroup.make", lambda *_, **__: None)

    async def whole() -> None:
        heard: list[Any] = []

        async def in_kernel(work: Callable[[], Any]) -> Any:
            return work()

        async with asyncio.TaskGroup() as tasks:
            ports = tmp_path / "ports.json"
            link = ResolverLink(tasks, tmp_path, ports, in_kernel, heard.append, lambda refused: None)
            await act(Scene(link, played, heard))
            link.close()

    asyncio.run(whole())


def configure(*workloads: str) -> wire.Configure:
    return wire.Configure(1, (), (), tuple(wire.Names(name, "enforce") for name in workloads))


def test_what_is_in_force_closes_nothing_of_a_policy_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(scene: Scene) -> None:
        await scene.link.listen(effects.Listen(1, ("a",)))
        scene.link.configure(configure("a"))
        await scene.link.listen(effects.Listen(2, ("a", "b")))
        scene.link.configure(configure("a"))  # as when the resolver was started anew meanwhile
        assert scene.listeners() == {"a", "b"}
        scene.link.configure(configure("a", "b"))
        await scene.link.listen(effects.Listen(3, ("b",)))
        assert scene.listeners() == {"a", "b"}  # if that policy is refused, the one before it needs both
        scene.link.configure(configure("b"))
        assert scene.listeners() == {"b"}
        scene.link.configure(configure())
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
            scene.played.ends[-1].send(wire.encode(wire.Counted(0, 0, 0, 0)))
            await asyncio.sleep(0.05)
        assert scene.played.closed == 0
        await scene.until(lambda: len(scene.played.ends) == 2)
        changes = [event for event in scene.heard if isinstance(event, events.ResolverChanged)]
        assert [change.up for change in changes] == [True, False, True]
        assert wire.Listen("a") in scene.played.said()

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


def test_the_next_daemon_listens_at_the_same_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = tmp_path / "ports.json"
    ports.write_text(json.dumps({"a": 41_000, "b": "rubbish", "c": 80}))

    async def act(scene: Scene) -> None:
        listening = await scene.link.listen(effects.Listen(1, ("a", "b", "c")))
        assert listening.ports["a"] == 41_000
        assert min(listening.ports.values()) > 1024

    play(tmp_path, monkeypatch, act)
    assert json.loads(ports.read_text())["a"] == 41_000
