"""Performs effects, and brings what came of them back to the engine.

The one match statement between what is decided and what is done.  Each list of effects is performed in its
order by a task of its own; an effect that guards ends its list when it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from penstock.core import effects, events, journal, resolver_wire
from penstock.core.effects import Effect
from penstock.core.events import Event
from penstock.core.wire import Json
from penstock.daemon.clock import now
from penstock.daemon.file_worker import FileWorker
from penstock.daemon.kernel_worker import KernelWorker
from penstock.errors import PenstockError
from penstock.kernel import systemd

T = TypeVar("T")


class Answerer(Protocol):
    """Whoever holds the connections of the control socket."""

    def answer(self, request: int, result: Json) -> None: ...

    def refuse(self, request: int, message: str, hint: str) -> None: ...


class Resolver(Protocol):
    """Whoever holds the link to the resolver."""

    async def listen(self, effect: effects.Listen) -> events.Listening: ...

    async def configure(self, message: resolver_wire.Configure) -> None: ...

    def settle(self, ids: tuple[int, ...], ok: bool) -> None: ...


class Executor:
    """`feed` is the engine's front door: it takes an event and comes back here with effects."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        file_worker: FileWorker,
        kernel_worker: KernelWorker,
        kernel_thread: ThreadPoolExecutor,
        answerer: Answerer,
        resolver: Resolver,
        feed: Callable[[Event], object],
        quit: Callable[[int, str], None],
    ) -> None:
        self._tasks = tasks
        self._files = file_worker
        self._kernel = kernel_worker
        self._kernel_thread = kernel_thread
        self._file_thread = ThreadPoolExecutor(1, "files")
        self._answerer = answerer
        self._resolver = resolver
        self._feed = feed
        self._quit = quit
        self._failing: set[str] = set()

    def perform(self, todo: Sequence[Effect]) -> asyncio.Task[None] | None:
        """Begin to perform a list.  It is done when the task is."""
        return self._tasks.create_task(self._run(todo)) if todo else None

    async def _run(self, todo: Sequence[Effect]) -> None:
        for effect in todo:
            name = type(effect).__name__
            try:
                event = await self._do(effect)
            except (PenstockError, OSError) as e:
                self._failing.add(name)
                self._feed(_failure(effect, e))
                if isinstance(effect, effects.Telling):
                    continue
                return
            if name in self._failing:
                self._failing.discard(name)
                self._feed(events.Worked(now(), name))
            if event is not None:
                self._feed(event)

    async def _do(self, effect: Effect) -> Event | None:  # noqa: C901 - the one table of all effects
        files, kernel = self._files, self._kernel
        match effect:
            case effects.ReadConfig():
                return await self._in_files(lambda: files.read_config(effect))
            case effects.ReadHistory():
                return await self._in_files(lambda: files.read_history(effect))
            case effects.Compile():
                return await self._in_files(lambda: files.compile(effect))
            case effects.StageState():
                await self._in_files(lambda: files.stage_state(effect))
            case effects.MarkTrial():
                await self._in_files(lambda: files.mark_trial(effect))
            case effects.CommitState(operation):
                await self._in_files(files.commit_state)
                return events.Saved(now(), operation)
            case effects.MakeCgroups():
                await self._in_kernel(lambda: kernel.make_cgroups(effect))
            case effects.BindCgroups():
                await self._in_kernel(lambda: kernel.bind_cgroups(effect))
            case effects.Load():
                await self._in_kernel(lambda: kernel.load(effect))
            case effects.ReadKernel():
                return await self._in_kernel(lambda: kernel.read_kernel(effect))
            case effects.Prove():
                return await self._in_kernel(kernel.prove)
            case effects.Examine():
                config = await self._in_files(files.look) if effect.around or effect.request is not None else None
                return await self._in_kernel(lambda: kernel.examine(effect, config))
            case effects.ScanUnits():
                return await self._in_kernel(kernel.scan_units)
            case effects.AskKernel():
                return await self._in_kernel(lambda: kernel.ask(effect))
            case effects.CountHits():
                return await self._in_kernel(lambda: kernel.count_hits(effect))
            case effects.Record(blocks):
                await self._in_files(lambda: files.record(blocks))
            case effects.SaveBooks():
                await self._in_files(lambda: files.save_books(effect))
            case effects.KeepFloor():
                await self._in_files(lambda: files.keep_floor(effect))
            case effects.EndTrial():
                await self._in_files(files.end_trial)
            case effects.Notify(text):
                systemd.notify(text)
            case effects.Answer(request, result):
                self._answerer.answer(request, result)
            case effects.Refuse(request, message, hint):
                self._answerer.refuse(request, message, hint)
            case effects.Quit(status, text):
                self._quit(status, text)
            case _:
                return await self._do_names(effect)
        return None

    async def _do_names(self, effect: Effect) -> Event | None:
        """The effects that are about look-ups."""
        match effect:
            case effects.Listen():
                return await self._resolver.listen(effect)
            case effects.Learn():
                await self._in_kernel(lambda: self._kernel.learn(effect))
            case effects.SayThere():
                await self._in_kernel(lambda: self._kernel.say_there(effect))
            case effects.Renew():
                await self._in_kernel(lambda: self._kernel.renew(effect))
            case effects.SaveNames():
                await self._in_files(lambda: self._files.save_names(effect))
            case effects.Configure(message):
                await self._resolver.configure(message)
            case effects.Settle(ids, ok):
                self._resolver.settle(ids, ok)
            case _:
                await self._do_grants(effect)
        return None

    async def _do_grants(self, effect: Effect) -> None:
        """The effects that are about what is lent."""
        match effect:
            case effects.SaveGrants(_, data) | effects.KeepGrants(data):
                await self._in_files(lambda: self._files.save_grants(data))
            case effects.Account():
                await self._in_files(lambda: self._files.account(effect))
            case _:
                await self._tell(effect)

    async def _tell(self, effect: Effect) -> None:
        """The effects that tell whoever watches this host."""
        match effect:
            case effects.Journal(level):
                fields = journal.record(effect)
                systemd.tell(level, fields["MESSAGE"], fields)
            case effects.TellBlocks(lines):
                for line in lines:
                    systemd.send(line.level, journal.record(line))
            case effects.WriteMetrics():
                await self._in_files(lambda: self._files.write_metrics(effect))

    async def _in_files(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._file_thread, work)

    async def _in_kernel(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._kernel_thread, work)

    def close(self) -> None:
        """Wait for what the threads still do."""
        self._file_thread.shutdown()


def _failure(effect: Effect, error: Exception) -> events.Failed:
    text = str(error) if isinstance(error, PenstockError) else _os_error(error)
    return events.Failed(
        now(),
        type(effect).__name__,
        text,
        getattr(effect, "operation", None),
        getattr(effect, "request", None),
        getattr(effect, "ids", ()),
    )


def _os_error(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
