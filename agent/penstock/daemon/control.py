"""The control socket: who may speak, and one request and one answer a connection.

Root only: by the directory's mode, by the socket's, and by the peer's credentials (SO_PEERCRED, unix(7)).  A
process of a governed workload is refused even as root: the server that is watched does not command the watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from penstock.core import events, wire
from penstock.core.slices import SLICE
from penstock.core.wire import Json
from penstock.daemon.clock import uptime
from penstock.errors import PenstockError
from penstock.kernel.login import login_of
from penstock.kernel.process import cgroup_of

CONNECTIONS = 64
PATIENCE = 10.0  # seconds for a request to arrive
ANSWER_PATIENCE = 120.0
LINGER = 1.0
OWNED = ("grant", "mode", "revoke")
TOO_MANY = "too many requests at once; try again in a moment"


class Control:
    """Serves RUN/control.sock; `feed` gets each request as an event and must have it answered some time.

    `tree` is the cgroup path below which penstock.slice is.
    """

    def __init__(
        self, path: Path, tree: str, feed: Callable[[events.Command], object], clock: Callable[[], datetime]
    ) -> None:
        self._path = path
        self._governed = f"{tree.rstrip('/')}/{SLICE}/"
        self._feed = feed
        self._clock = clock
        self._number = 0
        self._connections = 0
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.  The lock says that nobody else does, so an old socket is a dead one's."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError as e:
            raise PenstockError(f"cannot listen: {e.strerror or e}", where=str(self._path)) from e
        finally:
            os.umask(before)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=wire.MAX_REQUEST)

    def answer(self, request: int, result: Json) -> None:
        """Send the result to whoever asked; he may be gone."""
        if "daemon" in result:
            result = {**result, "daemon": {**result["daemon"], "pid": os.getpid()}}
        self._resolve(request, wire.encode_result(result))

    def refuse(self, request: int, message: str, hint: str) -> None:
        """Send an error."""
        self._resolve(request, wire.encode_error(message, hint))

    def _resolve(self, request: int, line: bytes) -> None:
        future = self._waiting.pop(request, None)
        if future is not None and not future.done():
            future.set_result(line)

    def close(self) -> None:
        """Stop listening; whoever waits hears that the daemon ends."""
        if self._server is not None:
            self._server.close()
        for request in list(self._waiting):
            self.refuse(request, "the daemon is stopping", "")
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            line = await self._converse(reader, writer)
            writer.write(line)
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
        except (ConnectionError, TimeoutError):
            pass  # he went away, or does not read
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        why_not = self._objection(writer.get_extra_info("socket"))
        if self._connections > 2 * CONNECTIONS:
            return wire.encode_error(why_not or TOO_MANY)
        if why_not or self._connections > CONNECTIONS:
            await _hear_out(reader)
            return wire.encode_error(why_not or TOO_MANY)
        try:
            async with asyncio.timeout(PATIENCE):
                message = wire.decode_request(await reader.readuntil(b"\n"))
        except ValueError as e:
            return wire.encode_error(f"not a request: {e}")
        except asyncio.IncompleteReadError:
            return wire.encode_error("not a request: it has no end")
        except asyncio.LimitOverrunError:
            return wire.encode_error(f"not a request: longer than {wire.MAX_REQUEST} bytes")
        self._number += 1
        number = self._number  # others come while this one waits
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._feed(self._command(number, message, writer.get_extra_info("socket")))
            async with asyncio.timeout(ANSWER_PATIENCE):
                return await future
        except TimeoutError:
            return wire.encode_error("the daemon is busy", "see its messages")
        finally:
            self._waiting.pop(number, None)

    def _command(self, number: int, message: wire.Message, peer: socket.socket) -> events.Command:
        """Who lends or revokes is looked up: what the message says of it is only what was said."""
        who = login_of(_credentials(peer)[0]) if message.command in OWNED else ""
        return events.Command(self._clock(), number, message, who, uptime())

    def _objection(self, peer: socket.socket) -> str:
        pid, uid = _credentials(peer)
        if not _is_root(uid):
            return "only root may ask the daemon"
        place = cgroup_of(pid)
        if place is None:
            return "who is asking could not be found out"
        if f"{place}/".startswith(self._governed):
            return "a process of a governed workload may not ask the daemon"
        return ""


def _credentials(peer: socket.socket) -> tuple[int, int]:
    """Process and user of whoever connected."""
    pid, uid, _ = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _is_root(uid: int) -> bool:
    return uid == 0


async def _hear_out(reader: asyncio.StreamReader) -> None:
    """Let the peer finish its request: who is hung up on while it sends does not see why."""
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(LINGER):
            await reader.readuntil(b"\n")
