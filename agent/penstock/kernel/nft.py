"""Our table in nf_tables, of the network namespace of the thread that makes an `Nft`.

Text is for loading, by libnftables: it knows every release of nft.  Reading back and binding cgroups are raw
netlink: a listing as text walks the whole cgroup tree for each map element (85 s with 1,100 cgroups and 1,000
workloads), and an element of a cgroup that is gone can be named by number only there.
"""

from __future__ import annotations

import errno
import hashlib
import math
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager

from penstock.core.cgroup_maps import held_back
from penstock.core.ruleset import CATCH_ALL, MARKER, TABLE, Element
from penstock.core.snapshot import Bindings, Snapshot, Verdict
from penstock.errors import PenstockError
from penstock.kernel import nfnetlink as nl
from penstock.kernel import nft_rules
from penstock.kernel.libnftables import Libnftables

INET = 1  # NFPROTO_INET
GET_TABLE, GET_CHAIN, GET_RULE, GET_SET = 1, 4, 7, 10
NEW_ELEMENT, GET_ELEMENT, DEL_ELEMENT = 12, 13, 14
GET_GENERATION, GET_OBJECT = 16, 19
DORMANT = 1  # NFT_TABLE_F_DORMANT: all there, and none of it in force
MAP = 0x8  # NFT_SET_MAP
BY_PACKETS = 0x20  # NFT_SET_EVAL: who fills it
TO_VERDICTS = 0xFFFFFF00  # NFT_DATA_VERDICT: what the map leads to
ANONYMOUS = 0x1  # NFT_SET_ANONYMOUS
COUNTER_OBJECT = 1  # NFT_OBJECT_COUNTER
FAMILIES = {12: 4, 24: 6}  # by the key size of our sets: address, protocol, port, each padded to four bytes
VERDICTS = {"jump": -3, "goto": -4}
VERDICT_NAMES = {number: name for name, number in VERDICTS.items()}
ATTEMPTS = 5
TOO_FAST, WHO = "the ruleset changes faster than it can be read", "find out who changes it: nft monitor"
ElementSets = dict[str, frozenset[Element]]
Part = tuple[int, int, int, bytes]  # message type, flags, family, attributes
_HEADERS = struct.Struct("=6H")  # size and type of an element, of its key, of the key's value


class Late(Exception):
    """There was no time to read all of it."""


class Nft:
    """Blocking; one thread uses it, in the namespace where it was made."""

    def __init__(self) -> None:
        self._library = Libnftables()
        self._channel = nl.Channel()
        self.commits = 0
        """Transactions of ours so far: each made one generation."""

    @property
    def port(self) -> int:
        """The netlink port that binds cgroups."""
        return self._channel.port

    def close(self) -> None:
        self._library.close()
        self._channel.close()

    def load(self, script: str) -> None:
        """One transaction; PenstockError with nft's first complaint."""
        self._library.run(script)
        self.commits += 1

    def generation(self) -> int:
        """The ruleset generation: grows by one with each transaction of anybody in this namespace."""
        body = self._request(GET_GENERATION, family=0)
        return int(struct.unpack(">I", nl.attribute_map(body)[1])[0])

    def bind(self, wanted: Bindings) -> None:
        """Make the maps hold exactly `wanted`.  Repeating it changes nothing."""
        parts: list[Part] = []
        for name, elements in wanted.items():
            held = self._map(name)
            gone = {c: v for c, v in held.items() if elements.get(c) != v}
            new = {c: v for c, v in elements.items() if held.get(c) != v}
            parts += _delete(name, gone) + _add(name, new)
        self.commit(parts, "to bind cgroups")

    def release(self, chains: Collection[str]) -> None:
        """Unbind every cgroup whose chain is none of `chains`, so that the chain can be deleted.

        What is bound in place is denied everything until it is bound anew: nothing around it would do that.
        """
        parts: list[Part] = []
        for name in self._maps():
            gone = {c: v for c, v in self._map(name).items() if v[1] not in chains}
            instead = held_back(name)
            parts += _delete(name, gone) + (_add(name, dict.fromkeys(gone, instead)) if instead else [])
        self.commit(parts, "to unbind cgroups")

    @contextmanager
    def also_bound(self, extra: Bindings) -> Iterator[None]:
        """Bind more cgroups, and unbind them at the end."""
        self.commit([part for name, elements in extra.items() for part in _add(name, elements)], "to bind cgroups")
        try:
            yield
        finally:
            gone = [part for name, elements in extra.items() for part in _delete(name, elements)]
            self.commit(gone, "to unbind cgroups")

    def commit(self, parts: list[Part], what: str) -> None:
        """One transaction of netlink messages; PenstockError, from its OSError, when the kernel refuses `what`."""
        if not parts:
            return
        try:
            self._channel.batch(parts)
        except OSError as e:
            raise PenstockError(f"the kernel refused {what}: {e.strerror}", where=TABLE) from e
        self.commits += 1

    def elements(self, set_name: str) -> Iterator[dict[int, bytes]]:
        """Attributes of each element of a set (NFTA_SET_ELEM_*); nothing when there is no such set."""
        for part in self._dump(GET_ELEMENT, nl.text(1, TABLE) + nl.text(2, set_name)):
            yield from map(nl.attribute_map, _each(part))

    def keys(self, set_name: str, until: float = math.inf) -> list[bytes]:
        """The key of each element of a set, soon; nothing when there is no such set.

        Late when it is not read by then (on the monotonic clock), and holds hundreds of elements.
        """
        body = nl.text(1, TABLE) + nl.text(2, set_name)
        with closing(nl.Channel()) as own:  # where the rest of an answer that is given up goes with it
            return [key for part in self._dump(GET_ELEMENT, body, own, until) for key in _keys(part)]

    def sets(self) -> list[str]:
        """Names of the sets of our table that are no maps."""
        found = [nl.attribute_map(body) for body in list(self._dump(GET_SET, nl.text(1, TABLE)))]
        return [nl.string(values[2]) for values in found if not _number(values, 3) & (MAP | ANONYMOUS)]

    def counters(self) -> dict[str, tuple[int, int]]:
        """Named counters of our table: packets and bytes; empty without a table."""
        result = {}
        for body in self._dump(GET_OBJECT, nl.text(1, TABLE)):
            values = nl.attribute_map(body)
            if _number(values, 3) != COUNTER_OBJECT:
                continue
            data = nl.attribute_map(values[4])
            packets, size = struct.unpack(">QQ", data[2] + data[1])
            result[nl.string(values[2])] = (packets, size)
        return result

    def hits(self, set_name: str, family: int) -> dict[Element, tuple[int, int]]:
        """Packets that each element of the set let through, and their bytes."""
        return {element: _tally(counter) for element, counter, _ in self._held(set_name, family)}

    def _held(self, set_name: str, family: int) -> Iterator[tuple[Element, bytes | None, bool]]:
        for part in self._dump(GET_ELEMENT, nl.text(1, TABLE) + nl.text(2, set_name)):
            yield from _elements(part, family)

    def has(self, set_name: str, address: bytes, protocol: int, port: int) -> bool:
        """Whether the set holds (address in network order, protocol, port) now, by asking the kernel."""
        key = address + bytes([protocol, 0, 0, 0]) + struct.pack(">HH", port, 0)
        return self.has_element(set_name, *(nl.nested(kind, nl.attribute(1, key)) for kind in (1, 10)))

    def has_element(self, set_name: str, *element: bytes) -> bool:
        """Whether the set holds now what these attributes (NFTA_SET_ELEM_*) name."""
        body = nl.text(1, TABLE) + nl.text(2, set_name) + nl.nested(3, nl.nested(1, *element))
        try:
            self._channel.get(_code(GET_ELEMENT), INET, body)
        except OSError as e:
            if e.errno == errno.ENOENT:
                return False
            raise
        return True

    def snapshot(self, *, elements: bool = True) -> Snapshot:
        """Read the table back, all of it at one generation.  Without `elements` the sets come out empty."""
        for _ in range(ATTEMPTS):
            before = self.generation()
            snapshot = self._read(before, elements)
            if self.generation() == before:
                return snapshot
        raise PenstockError(TOO_FAST, hint=WHO)

    def _read(self, generation: int, elements: bool) -> Snapshot:
        tables = [nl.attribute_map(body) for body in self._dump(GET_TABLE)]
        table = next((t for t in tables if nl.string(t[1]) == TABLE), None)
        if table is None:
            return Snapshot(generation)
        digest = hashlib.sha256()
        chains: dict[str, int] = {}
        for body in self._dump(GET_CHAIN):
            values = nl.attribute_map(body)
            if nl.string(values[1]) == TABLE:
                chains[nl.string(values[3])] = 0
                digest.update(values[3] + values.get(4, b"") + values.get(5, b"") + values.get(7, b""))
        slices: dict[str, int] = {}
        for body in self._dump(GET_RULE, nl.text(1, TABLE)):
            values = nl.attribute_map(body)
            if (cgroup := nft_rules.governed(values.get(4, b""))) is not None:
                slices[nl.string(values[2])] = cgroup
            chains[nl.string(values[2])] = chains.get(nl.string(values[2]), 0) + 1
            digest.update(values[2] + values.get(4, b""))
        counters = frozenset(self.counters())
        sets, timed, bindings = self._sets(elements)
        return Snapshot(
            generation=generation,
            exists=True,
            ours=MARKER in counters,
            dormant=bool(_number(table, 2) & DORMANT),
            chains=chains,
            digest=digest.hexdigest(),
            counters=counters,
            bindings=bindings,
            slices=slices,
            sets=sets,
            timed=timed,
        )

    def _maps(self) -> list[str]:
        found = [nl.attribute_map(body) for body in list(self._dump(GET_SET, nl.text(1, TABLE)))]
        return [nl.string(values[2]) for values in found if _number(values, 3) & ANONYMOUS == 0 and _binds(values)]

    def _sets(self, elements: bool) -> tuple[ElementSets, ElementSets, dict[str, dict[int, Verdict]]]:
        sets: ElementSets = {}
        timed: ElementSets = {}
        bindings: dict[str, dict[int, Verdict]] = {}
        for body in list(self._dump(GET_SET, nl.text(1, TABLE))):
            values = nl.attribute_map(body)
            name = nl.string(values[2])
            flags, key_size = _number(values, 3), _number(values, 5)
            if flags & ANONYMOUS:
                continue
            if _binds(values):
                bindings[name] = self._map(name)
                continue
            family = None if flags & (MAP | BY_PACKETS) else FAMILIES.get(key_size)
            held = list(self._held(name, family)) if family and elements else []
            sets[name] = frozenset(element for element, _, _ in held)
            timed[name] = frozenset(element for element, _, runs_out in held if runs_out)
        return sets, timed, bindings

    def _map(self, name: str) -> dict[int, Verdict]:
        result: dict[int, Verdict] = {}
        for body in self._dump(GET_ELEMENT, nl.text(1, TABLE) + nl.text(2, name)):
            for element in _each(body):
                values = nl.attribute_map(element)
                key = nl.attribute_map(values.get(1, b"")).get(1, b"")
                data = nl.attribute_map(values.get(2, b""))
                if len(key) != 8 or 2 not in data:  # somebody else's map
                    continue
                (cgroup,) = struct.unpack("=Q", key)
                verdict = nl.attribute_map(data[2])
                (number,) = struct.unpack(">i", verdict[1])
                chain = nl.string(verdict.get(2, b""))
                result[cgroup] = (VERDICT_NAMES.get(number, str(number)), chain)
        return result

    def _dump(
        self, kind: int, body: bytes = b"", channel: nl.Channel | None = None, until: float = math.inf
    ) -> list[bytes]:
        for _ in range(ATTEMPTS):
            try:
                return list(_before(until, (channel or self._channel).dump(_code(kind), INET, body)))
            except nl.Interrupted:
                continue
            except OSError as e:
                if e.errno == errno.ENOENT:
                    return []
                raise self._error(e) from e
        raise PenstockError(TOO_FAST, hint=WHO)

    def _request(self, kind: int, family: int) -> bytes:
        try:
            return self._channel.get(_code(kind), family, b"")
        except OSError as e:
            raise self._error(e) from e

    @staticmethod
    def _error(e: OSError) -> PenstockError:
        hint = "run it as root" if e.errno == errno.EPERM else "load it with: modprobe nf_tables"
        return PenstockError(f"nf_tables does not answer: {e.strerror}", hint=hint)


def _before(until: float, parts: Iterable[bytes]) -> Iterator[bytes]:
    for number, part in enumerate(parts):
        if number > 1 and time.monotonic() > until:  # two parts are no work, and the last one is always empty
            raise Late
        yield part


def _code(kind: int) -> int:
    return nl.SUBSYS_NFTABLES << 8 | kind


def _binds(values: Mapping[int, bytes]) -> bool:
    """Whether it is a map to verdicts: of cgroups, if it is ours."""
    return bool(_number(values, 3) & MAP) and _number(values, 6) == TO_VERDICTS


def _number(values: Mapping[int, bytes], kind: int) -> int:
    return int.from_bytes(values.get(kind, b""))


def _add(name: str, elements: Mapping[int, Verdict]) -> list[Part]:
    kind = _code(NEW_ELEMENT)
    return [(kind, nl.F_CREATE, INET, _map_element(name, cgroup, v)) for cgroup, v in elements.items()]


def _delete(name: str, elements: Collection[int]) -> list[Part]:
    return [(_code(DEL_ELEMENT), 0, INET, _map_element(name, cgroup, None)) for cgroup in elements]


def _map_element(name: str, cgroup: int, verdict: Verdict | None) -> bytes:
    parts = [nl.nested(1, nl.attribute(1, struct.pack("=Q", cgroup)))]
    if verdict is not None:
        code = nl.attribute(1, struct.pack(">i", VERDICTS[verdict[0]]))
        parts.append(nl.nested(2, nl.nested(2, code, nl.text(2, verdict[1]))))
    return nl.text(1, TABLE) + nl.text(2, name) + nl.nested(3, nl.nested(1, *parts))


def _each(body: bytes) -> Iterable[bytes]:
    """Each element of one part of a dumped set, as attributes."""
    for kind, start, end in nl.attributes(body):
        if kind == 3:
            for _, low, high in nl.attributes(body, start, end):
                yield body[low:high]


def _keys(body: bytes) -> Iterator[bytes]:
    """The key of each element of one part of a dumped set; empty where it has none.

    The kernel writes it first (`nf_tables_fill_setelem`), so that the other attributes need not be walked.
    """
    for kind, start, end in nl.attributes(body):
        if kind != 3:
            continue
        at = start
        while at + 12 <= end:
            size, _, _, outer, value, inner = _HEADERS.unpack_from(body, at)
            if outer & nl.ATTRIBUTE_TYPE != 1 or inner != 1 or value < 4 or not 8 + value <= size <= end - at:
                break
            yield body[at + 12 : at + 8 + value]
            at += (size + 3) & ~3
        for _, low, high in nl.attributes(body, at, end):
            yield nl.attribute_map(nl.attribute_map(body, low, high).get(1, b"")).get(1, b"")


def _elements(body: bytes, family: int) -> Iterator[tuple[Element, bytes | None, bool]]:
    """Each address element of one part of a dumped set, its counter expression, and whether it will run out."""
    size = 4 if family == 4 else 16
    protocol, port = size, size + 4
    for element in _each(body):
        values = nl.attribute_map(element)
        counter, runs_out = values.get(7), 4 in values
        if 1 not in values:
            yield CATCH_ALL, counter, runs_out
            continue
        key = values[1][4:]
        last = values[10][4:] if 10 in values else key
        yield (
            Element(
                int.from_bytes(key[:size]),
                int.from_bytes(last[:size]),
                key[protocol],
                int.from_bytes(key[port : port + 2]),
                int.from_bytes(last[port : port + 2]),
            ),
            counter,
            runs_out,
        )


def _tally(expression: bytes | None) -> tuple[int, int]:
    """Packets and bytes of an element's counter expression (NFTA_EXPR_DATA = 2 of NFTA_SET_ELEM_EXPR = 7)."""
    if expression is None:
        return 0, 0
    data = nl.attribute_map(nl.attribute_map(expression)[2])
    return int.from_bytes(data[2]), int.from_bytes(data[1])
