"""The daemon: sources of events, the engine, the executor; started in an order that can fail without a trace.

Ending it, however, leaves everything in force as it is: the rules are the kernel's, not the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from penstock.core import effects, events, grants, state
from penstock.core.blocks import Process
from penstock.core.engine import Engine
from penstock.core.events import Event
from penstock.core.name_elements import Opened
from penstock.core.packets import Denied, parse_nflog
from penstock.core.resolv_conf import ResolvConf
from penstock.core.resolver_wire import Refused
from penstock.core.slices import SLICE, slice_of
from penstock.core.snapshot import Snapshot
from penstock.daemon import places, upstreams
from penstock.daemon.clock import awake, boot, now, uptime
from penstock.daemon.control import Control
from penstock.daemon.executor import Executor
from penstock.daemon.file_worker import FileWorker
from penstock.daemon.kernel_worker import KernelWorker
from penstock.daemon.options import Options
from penstock.daemon.resolver_link import ResolverLink
from penstock.errors import PenstockError
from penstock.kernel import cgroup, interfaces, process, systemd
from penstock.kernel.asker import Asker
from penstock.kernel.nflog import NflogReader
from penstock.kernel.nft_monitor import NftMonitor
from penstock.kernel.slice_watch import SliceWatch

T = TypeVar("T")

TICK = 2.0
"""Seconds between two self-checks."""

AGAIN = 30.0
"""Seconds until the engine is told again whom the host asks."""

BREATH = 0.01
"""Seconds between two looks at the host's units, however many of them come and go."""

LEAVING = 20.0
"""Seconds that the end of the daemon waits for an operation: less than the service manager waits."""

FEW = 64
"""Processes of a workload that are looked at when one of its packets was denied."""


def main(options: Options) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status.  PenstockError when it cannot start."""
    if os.geteuid() != 0:
        raise PenstockError("the daemon needs root", hint="run it with sudo")
    tree = (options.cgroup or cgroup.default_tree()).absolute()
    path = cgroup.path_of(tree)
    strangers = cgroup.foreign(tree)
    if strangers:
        hint = "move it elsewhere, or give penstock another tree with --cgroup"
        raise PenstockError(f"holds {strangers[0]}, which is not penstock's", where=str(tree / SLICE), hint=hint)
    places.prepare(options)
    try:
        return asyncio.run(Daemon(options, tree, path).run())
    except ExceptionGroup as group:
        # The task group wraps what goes wrong inside of it; a user's mistake is one of ours all the same.
        errors, others = group.split(PenstockError)
        if errors is None or others is not None:
            raise
        raise _first(errors) from None


def _first(group: ExceptionGroup[PenstockError]) -> PenstockError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


class Daemon:
    """One run of the daemon."""

    def __init__(self, options: Options, tree: Path, path: str) -> None:
        self._options = options
        self._tree = tree
        self._path = path
        self._depth = cgroup.depth_of(path)
        self._slice = cgroup.slice_for_nft(tree)
        self._status = 0
        self._upstreams: ResolvConf | None = None
        self._followed = 0.0  # when they were said last
        self._askers = Asker(tree)
        self._unwatched = False  # some slices cannot be watched
        self._end, self._soon, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        saved = places.read(options.state / places.BOOKS)
        self._engine = Engine(now(), int.from_bytes(os.urandom(4)), saved)
        self._executor: Executor

    async def run(self) -> int:
        """Start everything, wait for the end, stop."""
        kernel_thread = ThreadPoolExecutor(1, "kernel")
        loop = asyncio.get_running_loop()
        # Who reads the log group is the only daemon of this network namespace: the kernel sees to it.
        with NflogReader() as log:
            kernel_worker = await loop.run_in_executor(kernel_thread, KernelWorker, self._tree, self._path)
            monitor = NftMonitor(kernel_worker.port, kernel_worker.thread)
            watch = SliceWatch(self._tree)
            snapshot = (await loop.run_in_executor(kernel_thread, kernel_worker.snapshot)).snapshot
            learned = await loop.run_in_executor(kernel_thread, kernel_worker.learned)
            file_worker = FileWorker(self._options, self._path)
            control = Control(self._options.run / places.SOCKET, self._path, self._feed, now)
            async with asyncio.TaskGroup() as tasks:
                resolver = self._resolver_link(tasks, kernel_thread)
                self._executor = Executor(
                    tasks, file_worker, kernel_worker, kernel_thread, control, resolver, self._feed, self._quit
                )
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._end.set)
                loop.add_signal_handler(signal.SIGHUP, self._soon.set)
                places.tell(self._options, self._tree, self._depth)
                # This opens the log: if it fails `status` says so from the beginning, and nothing else happens.
                self._executor.perform([effects.Record(())])
                self._read_watch(watch.cover)
                self._follow_upstreams()
                self._feed(self._started(snapshot, learned))
                await control.start()
                loop.add_reader(log, partial(self._read_log, log))
                loop.add_reader(monitor, partial(self._read_monitor, monitor))
                loop.add_reader(watch, partial(self._read_watch, watch.read))
                running = [tasks.create_task(self._tick()), tasks.create_task(self._scan())]
                await self._end.wait()
                await self._leave()
                for task in running:
                    task.cancel()
                resolver.close()
                for source in (log, monitor, watch):
                    loop.remove_reader(source)
                control.close()
                # Counters last: a record whose packet was not counted yet would be told again at the next start.
                self._read_log(log)
                if last_look := self._feed(events.Ticked(now())):
                    await last_look
                self._feed(events.Stopping(now()))
            self._executor.close()
            monitor.close()
            watch.close()
        kernel_thread.shutdown()
        return self._status

    async def _leave(self) -> None:
        """Let an operation end, and take back what waits to be confirmed; the next start would do it too."""
        deadline = uptime() + LEAVING
        while self._engine.busy and uptime() < deadline:
            if task := self._feed(events.Leaving(now())):
                await task
            await asyncio.sleep(BREATH)

    def _resolver_link(self, tasks: asyncio.TaskGroup, kernel_thread: ThreadPoolExecutor) -> ResolverLink:
        def in_kernel(work: Callable[[], T]) -> Awaitable[T]:
            return asyncio.get_running_loop().run_in_executor(kernel_thread, work)

        return ResolverLink(tasks, self._tree, in_kernel, self._feed, self._asker)

    def _asker(self, refused: Refused) -> Process | None:
        """Whom a workload is the resolver may say; where its cgroups are must not follow from what it says."""
        if self._engine.in_force is None or refused.workload not in self._engine.in_force.policy.workloads:
            return None
        (address, port), homes = refused.client, self._homes(refused.workload)
        return self._askers.find(homes, refused.protocol, address, port)

    def _follow_upstreams(self) -> None:
        """Whom the host asks may change at any time: with a lease, a link, a VPN.

        It is said again and again: who found no port for a listener tries it once more then.
        """
        found = upstreams.read()
        if found != self._upstreams or uptime() - self._followed >= AGAIN:
            self._upstreams, self._followed = found, uptime()
            self._feed(events.UpstreamsRead(now(), found.servers, found.search))

    def _started(self, snapshot: Snapshot, learned: tuple[Opened, ...]) -> events.Started:
        """What the engine must know before it does anything: what is bound in place must stay so."""
        data = places.read(self._options.state / state.FILE)
        units = cgroup.units(self._tree)
        before, said = places.history(self._options), places.floor_said(self._options)
        names = places.read(self._options.state / places.NAMES)
        lent = places.read(self._options.state / grants.FILE)
        return events.Started(
            *(now(), snapshot, data, self._depth, units, before, said, names, learned, self._slice),
            *(lent, boot(), uptime()),
        )

    def _feed(self, event: Event) -> asyncio.Task[None] | None:
        """Hand an event to the engine; the task that does what it says is done when all of that is."""
        return self._executor.perform(self._engine.handle(event))

    def _quit(self, status: int, text: str) -> None:
        print(f"penstock: {text}", file=sys.stderr, flush=True)
        self._status = status
        self._end.set()

    async def _tick(self) -> None:
        """Every TICK seconds, or sooner when SIGHUP says so.  Once all was done that came of it, we are alive."""
        before, woke = uptime(), awake()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._soon.wait()
            self._soon.clear()
            self._follow_upstreams()
            elapsed, counted = uptime() - before, awake() - woke
            before, woke = before + elapsed, woke + counted
            task = self._feed(events.Ticked(now(), elapsed, elapsed - counted, uptime()))
            if task is not None:
                await task
            systemd.notify("WATCHDOG=1")

    async def _scan(self) -> None:
        """Look at the host's units whenever cgroups came or went, one look after the other."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            task = self._executor.perform([effects.ScanUnits()])
            if task is not None:
                await task
            await asyncio.sleep(BREATH)

    def _read_watch(self, look: Callable[[], bool | None]) -> None:
        """Without it units are found too, by the next self-check: it is no reason to govern nobody."""
        name, failed = SliceWatch.__name__, self._unwatched
        try:
            happened, self._unwatched = look(), False
        except PenstockError as e:
            happened, self._unwatched = True, True
            self._feed(events.Failed(now(), name, str(e)))
        if failed and not self._unwatched:
            self._feed(events.Worked(now(), name))
        if happened:
            self._changed.set()

    def _read_log(self, log: NflogReader) -> None:
        batch = log.read()
        packets, malformed = _parse_all(batch.records)
        over = interfaces.names(packet.index for packet in packets)
        packets = [replace(packet, interface=over[packet.index]) for packet in packets]
        if packets or malformed or batch.lost:
            names = {packet.workload for packet in packets}
            processes = {name: self._processes(name) for name in names}
            self._feed(events.PacketsDenied(now(), tuple(packets), batch.lost, malformed, processes))

    def _processes(self, workload: str) -> tuple[events.Seen, ...]:
        """Those in the workload's cgroups, if they are few: among many nobody could be named anyway."""
        pids = [pid for path in self._homes(workload) for pid in cgroup.processes(self._tree / path)]
        return tuple(p for p in map(process.seen, pids) if p) if len(pids) <= FEW else ()

    def _homes(self, workload: str) -> list[str]:
        """The cgroups that are bound to it."""
        bound = self._engine.in_force.places if self._engine.in_force else {}
        return [slice_of(workload), *(path for path, name in bound.items() if name == workload)]

    def _read_monitor(self, monitor: NftMonitor) -> None:
        commits, lost = monitor.read()
        if commits or lost:
            self._feed(events.RulesetChanged(now(), tuple(commits), lost))


def _parse_all(
    records: list[bytes], parse: Callable[[bytes], Denied] = parse_nflog
) -> tuple[list[Denied], int]:
    """Parsed records, and how many made no sense."""
    packets: list[Denied] = []
    malformed = 0
    for record in records:
        try:
            packets.append(parse(record))
        except ValueError:
            malformed += 1
    return packets, malformed
