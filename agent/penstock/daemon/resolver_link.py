"""The daemon's end of the resolver: its process, its listeners, and the messages between the two.

The listeners stay open here: if the resolver dies nobody can take its ports, and the next one goes on with what
waits in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from penstock.core import effects, events, resolver_wire
from penstock.core.blocks import Process
from penstock.core.slices import RESOLVER
from penstock.daemon.clock import now
from penstock.errors import PenstockError
from penstock.kernel import cgroup
from penstock.kernel.listeners import Listeners, open_listeners
from penstock.kernel.resolver_process import ResolverProcess, spawn

T = TypeVar("T")
RECEIVE = 16 << 10
"""Bytes of a read: some dozens of look-ups, for a few of which the loop does nothing else."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a resolver that ended is started again; each time twice as long, until one has lived `STEADY`."""
STEADY = 30.0
SILENCE = 35.0
"""Seconds without a word after which it hangs; it says something every ten."""
CONFIGURING = 2.0
"""Seconds that the resolver may take for what is in force; whoever waits for an answer waits as long."""
MAX_LEARNING = 8
"""Reads whose addresses wait for the kernel; until it has taken some nothing more is read, and whoever asks
meanwhile gets no answer.  So a resolver that says more than the kernel takes costs neither memory nor other work's
turn.
"""
MAX_UNTAKEN = 4 << 20
"""Bytes of settled look-ups that wait for a resolver which takes nothing.  That is 200,000 of them, and an honest
one has 4096 under way; what is in force may wait besides, however long it is.
"""


class InKernel(Protocol):
    """Runs it in the kernel's thread."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class ResolverLink:
    """`feed` is the engine's front door, `find` says who asked."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        tree: Path,
        in_kernel: InKernel,
        feed: Callable[[events.Event], asyncio.Task[None] | None],
        find: Callable[[resolver_wire.Refused], Process | None],
    ) -> None:
        self._tasks = tasks
        self._tree = tree
        self._directory = tree / RESOLVER
        self._in_kernel = in_kernel
        self._feed = feed
        self._find = find
        self._listeners: dict[str, Listeners] = {}
        self._process: ResolverProcess | None = None
        self._frames = resolver_wire.Frames(resolver_wire.MAX_TO_DAEMON)
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._untaken = 0  # see MAX_UNTAKEN
        self._learning = 0  # see MAX_LEARNING
        self._configuring: dict[int, asyncio.Event] = {}  # by generation; set once the resolver goes by it
        self._pause = FIRST_PAUSE
        self._again: asyncio.TimerHandle | None = None
        self._hangs: asyncio.TimerHandle | None = None  # unless it says something before
        self._asked: frozenset[str] = frozenset()  # for whom listeners were wanted last
        self._closed = False

    # --- effects ---

    async def listen(self, effect: effects.Listen) -> events.Listening:
        """Have the resolver run and listen for these workloads.  What does not work is in the event."""
        self._asked = frozenset(effect.workloads)
        new = [name for name in effect.workloads if name not in self._listeners]
        error = ""
        try:
            if new:
                self._listeners |= await self._in_kernel(partial(self._open, tuple(new)))
            for name in new if self._process else ():
                self._pass(name)
            if self._process is None:
                await self._start()
        except PenstockError as e:
            error = str(e)
            if self._process is None and self._again is None:
                self._ended(f"cannot be started: {error}")
        ports = {name: self._listeners[name].port for name in effect.workloads if name in self._listeners}
        return events.Listening(now(), effect.operation, ports, error)

    async def configure(self, message: resolver_wire.Configure) -> None:
        """Have the resolver go by what is in force.  Who has no rules by name any more is not listened for.

        Unless a policy is under way in which he has: its listeners are there before it is.  What comes next is
        done when the resolver goes by it, so that nobody is told of a rule that his next look-up does not find.
        """
        wanted = {names.workload for names in message.workloads}
        for name in self._listeners.keys() - wanted - (self._asked if wanted else frozenset()):
            self._unlisten(self._listeners.pop(name))
            self._send(resolver_wire.encode(resolver_wire.Unlisten(name)))
        self._send(resolver_wire.encode(message))
        if not wanted:
            self._stop()
        elif self._process is not None:
            await self._configured(message.generation)

    def _unlisten(self, listeners: Listeners) -> None:
        """Close them, and do not pass them any more: their numbers are those of other files soon."""
        for waiting in [one for one in self._waiting if one[1] == listeners.descriptors]:
            self._waiting.remove(waiting)
        listeners.close()

    async def _configured(self, generation: int) -> None:
        """Until the resolver says so, or has ended; and not for long, if it hangs."""
        said = self._configuring.setdefault(generation, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIGURING):
                await said.wait()
        self._configuring.pop(generation, None)

    def settle(self, ids: tuple[int, ...], ok: bool) -> None:
        """Tell the resolver, and end it when it does not take what it is told."""
        frame = resolver_wire.encode(resolver_wire.Settled(ids, ok))
        self._send(frame)
        if self._process is not None and self._waiting:
            self._untaken += len(frame)
            if self._untaken > MAX_UNTAKEN:
                self._ended("takes nothing that it is told, and was ended")

    def close(self) -> None:
        """End the resolver; nobody is answered from now on.  May be called again."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        for listeners in self._listeners.values():
            listeners.close()

    # --- the process ---

    def _open(self, names: tuple[str, ...]) -> Mapping[str, Listeners]:
        cgroup.make(self._tree, (), resolver=True)
        return open_listeners(self._directory, names)

    async def _start(self) -> None:
        """Unless the daemon ends, which may still repair something then: nobody would end that one.

        An operation and the timer may both do this, while the kernel's thread is busy: the first one stays.
        """
        if self._closed:
            return
        process = await self._in_kernel(partial(self._spawn))
        if self._closed or self._process is not None:
            process.close()
            return
        self._process = process
        self._frames = resolver_wire.Frames(resolver_wire.MAX_TO_DAEMON)
        self._waiting.clear()
        self._untaken = 0
        loop = asyncio.get_running_loop()
        loop.add_reader(process.link, self._read)
        for name in self._listeners:
            self._pass(name)
        self._feed(events.ResolverChanged(now(), True))
        loop.call_later(STEADY, self._steady, process)
        self._heard()

    def _spawn(self) -> ResolverProcess:
        cgroup.make(self._tree, (), resolver=True)
        process = spawn(self._directory)
        process.link.setblocking(False)
        return process

    def _steady(self, process: ResolverProcess) -> None:
        if self._process is process:
            self._pause = FIRST_PAUSE

    def _stop(self) -> None:
        process, self._process = self._process, None
        for said in self._configuring.values():
            said.set()
        for timer in (self._again, self._hangs):
            if timer is not None:
                timer.cancel()
        self._again = self._hangs = None
        if process is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(process.link)
        loop.remove_writer(process.link)
        if not self._waiting:  # else it is in the midst of a message, and has seconds to live
            with contextlib.suppress(OSError):
                process.link.send(resolver_wire.encode(resolver_wire.Leave()))
        process.close()

    def _heard(self) -> None:
        """It said something, or has just begun."""
        if self._hangs is not None:
            self._hangs.cancel()
        self._hangs = asyncio.get_running_loop().call_later(SILENCE, self._ended, "does not go on, and was ended")

    def _ended(self, why: str) -> None:
        """Start another one, after a pause: what kills it may come again."""
        self._stop()
        self._feed(events.ResolverChanged(now(), False, f"the resolver {why}; it is started again"))
        self._again = asyncio.get_running_loop().call_later(self._pause, self._restart)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _restart(self) -> None:
        self._again = None
        if self._process is None and not self._closed:
            self._tasks.create_task(self._try_again())

    async def _try_again(self) -> None:
        try:
            await self._start()
        except PenstockError as e:
            self._ended(f"cannot be started: {e}")

    # --- messages ---

    def _pass(self, name: str) -> None:
        self._send(resolver_wire.encode(resolver_wire.Listen(name)), self._listeners[name].descriptors)

    def _send(self, frame: bytes, descriptors: tuple[int, ...] = ()) -> None:
        if self._process is None:
            return
        self._waiting.append((frame, descriptors))
        if len(self._waiting) == 1:
            self._write()

    def _write(self) -> None:
        """As much as the socket takes; the loop calls again for the rest."""
        process = self._process
        if process is None:
            return
        loop = asyncio.get_running_loop()
        while self._waiting:
            frame, descriptors = self._waiting[0]
            try:
                if descriptors:
                    sent = socket.send_fds(process.link, [frame], list(descriptors))
                else:
                    sent = process.link.send(frame)
            except BlockingIOError:
                loop.add_writer(process.link, self._write)
                return
            except OSError as e:
                # Not at once: whoever says something now has more to say.
                loop.call_soon(self._cannot_be_told, process, e)
                return
            if sent < len(frame):
                self._waiting[0] = frame[sent:], ()
            else:
                self._waiting.popleft()
        self._untaken = 0
        loop.remove_writer(process.link)

    def _cannot_be_told(self, process: ResolverProcess, error: OSError) -> None:
        """Nobody would say the rest of the message; and a look-up that is not settled is not answered."""
        if self._process is process:
            gone = isinstance(error, ConnectionError)
            self._ended("ended" if gone else f"cannot be told anything ({error.strerror}), and was ended")

    def _read(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            data = process.link.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended("ended")
            return
        try:
            messages = tuple(resolver_wire.decode_from_resolver(frame) for frame in self._frames.feed(data))
        except ValueError as e:
            self._ended(f"said what makes no sense ({e}), and was ended")
            return
        self._heard()
        for message in messages:
            if isinstance(message, resolver_wire.Configured) and message.generation in self._configuring:
                self._configuring[message.generation].set()
        # Two events, two lists of effects: an answer that waits for the kernel does not wait for the log's disk.
        learned = tuple(m for m in messages if isinstance(m, resolver_wire.Learn))
        others = tuple(m for m in messages if not isinstance(m, resolver_wire.Learn | resolver_wire.Configured))
        if learned:
            self._learn(learned)
        if others:
            refused = [m for m in others if isinstance(m, resolver_wire.Refused)]
            askers = {m.id: who for m in refused if (who := self._find(m)) is not None}
            self._feed(events.FromResolver(now(), others, askers))

    def _learn(self, messages: tuple[resolver_wire.Learn, ...]) -> None:
        """Have the kernel take them, and read no more when it falls behind."""
        task = self._feed(events.FromResolver(now(), messages))
        if task is None:
            return
        self._learning += 1
        task.add_done_callback(self._learned)
        if self._learning >= MAX_LEARNING and self._process is not None:
            asyncio.get_running_loop().remove_reader(self._process.link)
            if self._hangs is not None:
                self._hangs.cancel()  # it may say what it likes: nobody hears it

    def _learned(self, _: asyncio.Task[None]) -> None:
        self._learning -= 1
        if self._learning == MAX_LEARNING - 1 and self._process is not None:
            asyncio.get_running_loop().add_reader(self._process.link, self._read)
            self._heard()
