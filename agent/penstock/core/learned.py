"""What the workloads' look-ups found: which names lead to which addresses, and until when.

An address keeps every name that gave it, each with its own end: a rule that goes takes away what its names opened,
and nothing that another name still gives.  An answer again moves the end later, never earlier.  Names are in
the form of `names.normalise`, addresses are packed (4 or 16 bytes), times are seconds since the epoch and come
from the caller.

All of it is bounded.  At a bound `learn` says no and changes nothing: the new is refused, what is learned stays.
500,000 answers (10,000 names with 50 IPv6 addresses each) take 90 MiB, and 130 where each address has two names.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from penstock.core import learned_file
from penstock.core.learned_file import Saved
from penstock.core.past import Past

FLOOR = 600
"""Seconds that an answer counts at least: programs keep addresses longer than its TTL says."""

SLACK = 120
"""Seconds more: so long an answer that comes again needs not be learned again."""

CLOSE = 5
"""Seconds by which the kernel's timeouts may be behind ours."""

LONGEST = 7 * 86_400
"""Seconds that it counts at most, whatever its TTL."""

MAX_ADDRESSES = 4096
"""Of a name; as all bounds, of a workload's own look-ups.  Some stores have a few new ones in each answer."""

MAX_NAMES = 16_384
"""Of a workload."""

MAX_OF_ONE = 650_000
"""Answers (an address of a name) of a workload."""

MAX_ALL = 1_300_000
SAVED = 4 << 20
"""Bytes that `save` fills at most, unless told otherwise."""

WORK = 64
"""Names that one call of `expire` looks at."""

FAR = 60
"""Minutes after which a name is looked at at the latest, however long its answers count."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A name of an address; `until` may be over."""

    name: str
    until: float


@dataclass(slots=True, eq=False)
class _Name:
    owner: _Workload
    text: str
    ends: dict[bytes, float] = field(default_factory=dict)
    due: int = 0  # the minute in which it is looked at; 0: in none


@dataclass(slots=True, eq=False)
class _Workload:
    name: str
    names: dict[str, _Name] = field(default_factory=dict)
    at: dict[bytes, _Name | dict[_Name, None]] = field(default_factory=dict)  # most addresses have one name
    count: int = 0  # answers


class Learned:
    """See the module."""

    def __init__(self) -> None:
        self._workloads: dict[str, _Workload] = {}
        self._count = 0
        self._past = Past()
        self._due: dict[int, list[_Name]] = {}  # by minute
        self._minutes: list[int] = []  # those, a heap
        self._shift = 0.0  # how far the clock was set, in all
        self._restored: dict[tuple[str, bytes], list[Entry]] = {}
        self._saved: bytes | None = None

    # --- learning ---

    def learn(self, workload: str, name: str, addresses: Iterable[tuple[bytes, int]], now: float) -> bool:
        """An answer said that `name` is at these addresses, each for so many seconds (its TTL).

        False at a bound; then nothing was changed.
        """
        now -= self._shift
        ends: dict[bytes, float] = {}
        for address, ttl in addresses:
            end = now + min(max(ttl, FLOOR), LONGEST) + SLACK
            if end > ends.get(address, 0.0):
                ends[address] = end
        return self._take(workload, name, ends, now)

    def found(self, workload: str, address: bytes, name: str, until: float) -> bool:
        """The kernel holds the address since before our start, for `name`.  False at a bound.

        What was saved of other names of that address counts again, too.
        """
        end = until - self._shift
        good = self._take(workload, name, {address: end}, end)
        for other in self._restored.pop((workload, address), ()):
            good &= self._take(workload, other.name, {address: other.until}, other.until)
        return good

    def _take(self, workload: str, name: str, ends: dict[bytes, float], now: float) -> bool:
        owner = self._workloads.get(workload)
        held = owner.names.get(name) if owner else None
        new = _missing(held, ends)
        if held and len(held.ends) + len(new) > MAX_ADDRESSES:
            self._end_over(held, now)
            new = _missing(held, ends)
        if new and self._is_full(owner, held, len(new)):
            return False
        if not ends:
            return True
        if owner is None:
            owner = self._workloads[workload] = _Workload(workload)
        if held is None:
            held = owner.names[name] = _Name(owner, name)
        for address, end in ends.items():
            if end > held.ends.get(address, 0.0):
                held.ends[address] = end
        for address in new:
            others = owner.at.get(address)
            if isinstance(others, dict):
                others[held] = None
            else:
                owner.at[address] = held if others is None else {others: None, held: None}
        owner.count += len(new)
        self._count += len(new)
        if new:
            self._saved = None
        self._look_at(held, min(ends.values()), now)
        return True

    def _is_full(self, owner: _Workload | None, held: _Name | None, more: int) -> bool:
        return (
            (len(held.ends) if held else 0) + more > MAX_ADDRESSES
            or (held is None and owner is not None and len(owner.names) >= MAX_NAMES)
            or (owner.count if owner else 0) + more > MAX_OF_ONE
            or self._count + more > MAX_ALL
        )

    # --- asking ---

    def workloads(self) -> tuple[str, ...]:
        """Those of whom anything is remembered."""
        return tuple({**dict.fromkeys(self._workloads), **dict.fromkeys(self._past.workloads())})

    def current(self, workload: str, now: float) -> Iterator[tuple[bytes, str, float]]:
        """(address, name, end) of all answers that count."""
        owner, now = self._workloads.get(workload), now - self._shift
        for held in owner.names.values() if owner else ():
            for address, end in held.ends.items():
                if end > now:
                    yield address, held.text, end + self._shift

    def remembered(self, workload: str) -> Iterator[tuple[bytes, str]]:
        """(address, name) of all answers, also of those that are over; some twice."""
        owner = self._workloads.get(workload)
        for held in owner.names.values() if owner else ():
            yield from ((address, held.text) for address in held.ends)
        yield from ((address, name) for address, name, _ in self._past.latest_first(workload))

    def names_of(self, workload: str, address: bytes) -> tuple[Entry, ...]:
        """The names that gave the address, also those that are over, the one that ends last first."""
        owner = self._workloads.get(workload)
        found = dict(self._past.of(workload, address))
        for held in _several(owner.at.get(address, {})) if owner else ():
            found[held.text] = held.ends[address]
        entries = (Entry(name, end + self._shift) for name, end in found.items())
        return tuple(sorted(entries, key=lambda entry: -entry.until))

    def names(self, workload: str) -> tuple[str, ...]:
        """The names whose answers count, or did a moment ago."""
        owner = self._workloads.get(workload)
        return tuple(owner.names) if owner else ()

    def addresses_of(self, workload: str, name: str, now: float) -> list[tuple[bytes, float]]:
        """(address, end) of the answers for one name that count."""
        owner, now = self._workloads.get(workload), now - self._shift
        held = owner.names.get(name) if owner else None
        return [(a, end + self._shift) for a, end in held.ends.items() if end > now] if held else []

    def end_of(self, workload: str, name: str, address: bytes) -> float:
        """Until when the answer counts, or counted; 0 when there was none."""
        owner = self._workloads.get(workload)
        held = owner.names.get(name) if owner else None
        return held.ends[address] + self._shift if held and address in held.ends else 0.0

    def count(self, workload: str) -> int:
        """How many addresses there are that count, or did a moment ago."""
        owner = self._workloads.get(workload)
        return len(owner.at) if owner else 0

    def is_new(self, workload: str, address: bytes, now: float) -> bool:
        """Whether the kernel cannot hold it."""
        owner, now = self._workloads.get(workload), now - self._shift
        if owner is not None and address in owner.at:
            return False
        return all(end < now - CLOSE for end in dict(self._past.of(workload, address)).values())

    # --- forgetting ---

    def lost(self, workload: str, keep: Callable[[str], bool]) -> Iterator[tuple[float, bytes, str]]:
        """(when, address, name) of all answers for names that `keep` is false of, also of those that are over.

        `when` they came; later than that, maybe later than now, where their TTL is above `FLOOR`.
        """
        owner = self._workloads.get(workload)
        held = owner.names.values() if owner else ()
        counting = ((a, name.text, end) for name in held if not keep(name.text) for a, end in name.ends.items())
        over = (answer for answer in self._past.latest_first(workload) if not keep(answer[1]))
        for address, text, end in chain(counting, over):
            yield end + self._shift - FLOOR - SLACK, address, text

    def forget(self, workload: str, keep: Callable[[str], bool]) -> None:
        """Forget all names that `keep` is false of: no rule stands for them any more."""
        owner = self._workloads.get(workload)
        for held in list(owner.names.values()) if owner else ():
            if not keep(held.text):
                self._unlink(held, list(held.ends))
                self._remove(held)
        self._past.forget(workload, keep)
        self._saved = None

    def drop(self, workload: str) -> None:
        """Forget all of a workload."""
        owner = self._workloads.pop(workload, None)
        if owner is not None:
            self._count -= owner.count
            for held in owner.names.values():
                held.due = 0
        self._past.drop(workload)
        self._saved = None

    def jump(self, seconds: float) -> None:
        """The clock was set forward by so much (or back: negative), or the host slept: the kernel's timeouts stood
        still meanwhile, and so does all that ends here.
        """
        self._shift += seconds
        self._saved = None

    def expire(self, now: float) -> None:
        """Move answers that are over to the past, a bounded number a call.  Call every second or so."""
        now -= self._shift
        self._restored.clear()  # what the kernel did not hold when we started
        for _ in range(WORK):
            if not self._minutes or self._minutes[0] * 60 > now:
                break
            minute = self._minutes[0]
            held = self._due[minute].pop()
            if not self._due[minute]:
                del self._due[heapq.heappop(self._minutes)]
            if held.due == minute:
                held.due = 0
                self._end_over(held, now)
                if held.ends:
                    self._look_at(held, min(held.ends.values()), now)
                else:
                    self._remove(held)
        self._past.expire(now, WORK)

    def _look_at(self, held: _Name, end: float, now: float) -> None:
        minute = min(int(end // 60) + 1, int(now // 60) + FAR)
        if held.due and held.due <= minute:
            return
        held.due = minute
        if minute not in self._due:
            self._due[minute] = []
            heapq.heappush(self._minutes, minute)
        self._due[minute].append(held)

    def _end_over(self, held: _Name, now: float) -> None:
        over = [address for address, end in held.ends.items() if end <= now]
        for address in over:
            self._past.add(held.owner.name, address, held.text, held.ends[address])
        if over:
            self._unlink(held, over)
            self._saved = None

    def _unlink(self, held: _Name, addresses: Iterable[bytes]) -> None:
        at = held.owner.at
        for address in addresses:
            del held.ends[address]
            names = at[address]
            if isinstance(names, dict):
                del names[held]
                if len(names) == 1:
                    (at[address],) = names
            else:
                del at[address]
            held.owner.count -= 1
            self._count -= 1

    def _remove(self, held: _Name) -> None:
        """A name without addresses."""
        held.due = 0
        del held.owner.names[held.text]
        if not held.owner.names:
            del self._workloads[held.owner.name]

    # --- saving ---

    def save(self, limit: int = SAVED) -> bytes:
        """What a daemon after this one cannot read from the kernel, the most useful first, `limit` bytes at most.

        That is what is over, and all names of an address that has several: the kernel keeps one of them.
        """
        if self._saved is None:
            self._saved = learned_file.encode(self._to_save(), limit)
        return self._saved

    def restore(self, data: bytes, now: float) -> None:
        """Take in what `save` gave, before any `found`.  ValueError, and nothing taken in, if it is damaged."""
        for workload, address, name, until in reversed(learned_file.decode(data)):
            if until > now:
                self._restored.setdefault((workload, address), []).append(Entry(name, until - self._shift))
            else:
                self._past.add(workload, address, name, until - self._shift)

    def _to_save(self) -> Iterator[Saved]:
        for workload, owner in self._workloads.items():
            for address, names in owner.at.items():
                if isinstance(names, dict) or len(names.text) > learned_file.KERNEL_KEEPS:
                    for held in _several(names):
                        yield workload, address, held.text, held.ends[address] + self._shift
        for workload in self._past.workloads():
            for address, name, until in self._past.latest_first(workload):
                yield workload, address, name, until + self._shift


def _missing(held: _Name | None, ends: dict[bytes, float]) -> list[bytes]:
    return [address for address in ends if address not in held.ends] if held else list(ends)


def _several(names: _Name | dict[_Name, None]) -> Iterable[_Name]:
    return names if isinstance(names, dict) else (names,)
