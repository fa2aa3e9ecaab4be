"""The control socket: whom it answers, and that each gets his own answer.  Nothing of it needs a daemon."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.core import events, wire
from penstock.core.wire import Message
from penstock.daemon import control as module
from penstock.daemon.control import CONNECTIONS, Control
from penstock.errors import PenstockError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
STATUS = wire.encode_request(Message("status"))


class Server:
    """A control socket whose requests the test answers."""

    def __init__(self, path: Path, tree: str = "/nowhere") -> None:
        self.path = path
        self.asked: list[events.Command] = []
        self.control = Control(path, tree, self.asked.append, lambda: NOW)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))

    async def send(self, data: bytes) -> asyncio.StreamReader:
        reader, writer = await self.open()
        writer.write(data)
        self._writers = [*getattr(self, "_writers", []), writer]
        return reader

    async def asked_for(self, count: int) -> None:
        await until(lambda: len(self.asked) >= count)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


async def answer_of(reader: asyncio.StreamReader) -> Any:
    async with asyncio.timeout(5):
        return json.loads(await reader.read())


Served = Callable[[Callable[[Server], Awaitable[None]]], None]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    """Run a test against a server; whoever runs the tests counts as root."""
    monkeypatch.setattr(module, "_is_root", lambda uid: uid == os.geteuid())

    def run(body: Callable[[Server], Awaitable[None]]) -> None:
        async def whole() -> None:
            server = Server(tmp_path / "control.sock")
            await server.control.start()
            try:
                await body(server)
            finally:
                server.control.close()

        asyncio.run(whole())

    return run


def test_each_gets_his_own_answer_in_any_order(served: Served) -> None:
    async def body(server: Server) -> None:
        readers = [await server.send(STATUS) for _ in range(3)]
        await server.asked_for(3)
        for number in (2, 1, 3):
            server.control.answer(server.asked[number - 1].request, {"n": number})
            assert (await answer_of(readers[number - 1]))["result"] == {"n": number}

    served(body)


def test_the_end_of_one_conversation_leaves_the_others(served: Served) -> None:
    async def body(server: Server) -> None:
        first = await server.send(STATUS)
        await server.asked_for(1)
        second = await server.send(STATUS)
        await server.asked_for(2)
        server.control.answer(server.asked[0].request, {})
        await answer_of(first)
        server.control.refuse(server.asked[1].request, "no", "because")
        assert (await answer_of(second))["error"] == {"message": "no", "hint": "because"}

    served(body)


def test_the_pid_is_filled_in(served: Served) -> None:
    async def body(server: Server) -> None:
        reader = await server.send(STATUS)
        await server.asked_for(1)
        server.control.answer(server.asked[0].request, {"daemon": {"pid": None}})
        assert (await answer_of(reader))["result"] == {"daemon": {"pid": os.getpid()}}

    served(body)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b'{"v":1}\n', "expected"),
        (b'{"v":1,"command":"halt","arguments":{}}\n', "unknown command"),
        (b"[" * 10_000 + b"\n", "not JSON"),
        (b"x" * (wire.MAX_REQUEST + 1), "longer than"),
    ],
)
def test_what_is_no_request_is_refused_with_a_sentence(served: Served, data: bytes, why: str) -> None:
    async def body(server: Server) -> None:
        answer = await answer_of(await server.send(data))
        assert why in answer["error"]["message"]
        assert server.asked == []

    served(body)


def test_half_a_request_is_refused(served: Served) -> None:
    async def body(server: Server) -> None:
        reader, writer = await server.open()
        writer.write(STATUS[:5])
        writer.write_eof()
        assert "no end" in (await answer_of(reader))["error"]["message"]

    served(body)


def test_who_closes_his_side_after_the_request_is_answered(served: Served) -> None:
    async def body(server: Server) -> None:
        reader, writer = await server.open()
        writer.write(STATUS)
        writer.write_eof()
        await server.asked_for(1)
        server.control.answer(server.asked[0].request, {})
        assert (await answer_of(reader))["ok"] is True

    served(body)


def test_who_goes_away_hurts_nobody(served: Served) -> None:
    async def body(server: Server) -> None:
        _, writer = await server.open()
        writer.write(STATUS)
        await server.asked_for(1)
        writer.close()
        server.control.answer(server.asked[0].request, {"big": "x" * 1_000_000})
        reader = await server.send(STATUS)
        await server.asked_for(2)
        server.control.answer(server.asked[1].request, {})
        assert (await answer_of(reader))["ok"] is True

    served(body)


def test_who_says_nothing_is_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)

    async def body(server: Server) -> None:
        reader, _ = await server.open()
        async with asyncio.timeout(5):
            assert await reader.read() == b""

    served(body)


def test_too_many_at_once_are_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(server: Server) -> None:
        idle = [await server.open() for _ in range(CONNECTIONS)]
        assert "too many" in (await answer_of(await server.send(STATUS)))["error"]["message"]
        for _, writer in idle:
            writer.close()
        await until(lambda: not server.control._connections)
        reader = await server.send(STATUS)
        await server.asked_for(1)
        server.control.answer(server.asked[0].request, {})
        assert (await answer_of(reader))["ok"] is True

    served(body)


def test_the_end_of_the_daemon_is_told_to_who_waits(served: Served) -> None:
    async def body(server: Server) -> None:
        reader = await server.send(STATUS)
        await server.asked_for(1)
        server.control.close()
        assert "stopping" in (await answer_of(reader))["error"]["message"]
        assert not server.path.exists()

    served(body)


def test_who_is_not_root_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_root", lambda uid: False)

    async def body(server: Server) -> None:
        answer = await answer_of(await server.send(STATUS))
        assert "only root" in answer["error"]["message"]
        assert server.asked == []

    served(body)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/nowhere/penstock.slice/penstock-w.slice/run-1.scope", "governed"),
        ("/nowhere/penstock.slice", "governed"),
        (None, "could not be found out"),
        ("/nowhere/penstock.slice.d", ""),
        ("/", ""),
    ],
)
def test_a_process_of_a_workload_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch, place: str | None, why: str
) -> None:
    monkeypatch.setattr(module, "cgroup_of", lambda pid: place)

    async def body(server: Server) -> None:
        reader = await server.send(STATUS)
        if why:
            assert why in (await answer_of(reader))["error"]["message"]
        else:
            await server.asked_for(1)

    served(body)


def test_the_socket_is_for_its_owner_only_and_an_old_one_is_replaced(served: Served, tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("left over")

    async def body(server: Server) -> None:
        mode = server.path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    served(body)


def test_a_path_that_is_too_long_is_said(tmp_path: Path) -> None:
    server = Server(tmp_path / ("x" * 120))
    with pytest.raises(PenstockError, match="cannot listen: AF_UNIX path too long"):
        asyncio.run(server.control.start())


def test_whose_login_it_is_is_asked_of_the_kernel(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def login_of(pid: int) -> str:
        asked.append(pid)
        return "anna"

    monkeypatch.setattr(module, "login_of", login_of)
    revoke = wire.encode_request(Message("revoke", {"id": "x", "user": "mallory"}))

    async def body(server: Server) -> None:
        for data in (STATUS, revoke):
            await server.send(data)
        await server.asked_for(2)
        status, command = sorted(server.asked, key=lambda one: one.message.command, reverse=True)
        assert (status.login, command.login) == ("", "anna")
        assert command.uptime

    served(body)
    assert asked == [os.getpid()]
