"""A lab under a policy, without the daemon, and processes in it that take orders: for tests with real packets.

`Actor` is a process somewhere in a lab that runs functions one after the other and keeps its sockets in
between: functions hand out descriptor numbers.  `Governed` loads a policy and binds the workloads' cgroups.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, cast

from penstock.core import cgroup_maps, label_bits, name_chains, name_rules, questions, render_nft
from penstock.core.compile import Live, Resolver, compile_policy
from penstock.core.conditions import Condition, InCgroup
from penstock.core.lookup_chains import ANSWERING, LISTENING
from penstock.core.name_elements import Opened, Retract
from penstock.core.parse import parse
from penstock.core.policy import Mode, Policy
from penstock.core.ruleset import Ruleset
from penstock.core.slices import RESOLVER
from penstock.demo import namespaces
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.kernel import name_sets
from penstock.kernel.cgroup import slice_for_nft
from penstock.kernel.nft import Nft

SLICE = "penstock.slice"
NOWHERE: Mapping[str, str] = {}
Bound = tuple[str, tuple[tuple[str, str, str], ...]]
"""A cgroup by its path, and how it is bound."""

DEPTH = 2
"""Level of the slice in a lab, which is a directory of the cgroup root."""


def slice_of(workload: str) -> str:
    """The cgroup of a workload, in the lab's subtree."""
    return f"{SLICE}/penstock-{workload}.slice"


def policy_of(*workloads: str, host: str = "version: 1\n") -> Policy:
    """Parse rule files, one text a workload, and penstock.yaml."""
    files = {f"rules.d/{number}.yaml": text.encode() for number, text in enumerate(workloads)}
    files["penstock.yaml"] = host.encode()
    parsed = parse(files)
    assert parsed.policy, parsed.problems
    return parsed.policy


def rules(name: str, egress: str = "[]", ingress: str = "[]", mode: str = "enforce") -> str:
    """A rule file; `egress` and `ingress` in YAML's flow style."""
    return f"version: 1\nworkload: {name}\nmode: {mode}\negress: {egress}\ningress: {ingress}\n"


class Actor:
    """A process on `host` in `cgroup` (default: a bystander).  Ends with `close`, or with its owner."""

    def __init__(self, host: Host, cgroup: str | None = None, user: str = "root") -> None:
        ours, theirs = socket.socketpair()
        enter = host._entry(cgroup, user, "/")
        with namespaces.children_in(host._shared[namespaces.CLONE_NEWPID]):
            self.pid = os.fork()
            if self.pid == 0:
                ours.close()
                _serve(theirs, enter)
        theirs.close()
        self._channel = ours.makefile("rwb")
        ours.close()
        self._status: int | None = None
        host._children.append(cast("subprocess.Popen[Any]", self))  # the lab ends it, if nobody else does

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run it there and return its result, or raise its exception."""
        self.start(function, *args, **kwargs)
        return self.result()

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Begin; `result` must follow before the next one."""
        pickle.dump((function, args, kwargs), self._channel)
        self._channel.flush()

    def result(self) -> Any:
        """What the function that was started returned."""
        good, value = pickle.load(self._channel)
        if not good:
            raise value
        return value

    def close(self) -> None:
        """End it and wait for its end."""
        self.kill()
        self.wait()
        self._channel.close()

    def kill(self) -> None:
        """As subprocess.Popen's."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """As subprocess.Popen's."""
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def poll(self) -> int | None:
        """As subprocess.Popen's."""
        return self._status

    def __enter__(self) -> Actor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


def _serve(raw: socket.socket, enter: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        gc.freeze()
        enter()
        channel = raw.makefile("rwb")
        while True:
            function, args, kwargs = pickle.load(channel)
            try:
                outcome = (True, function(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - a process boundary: the caller raises it
                outcome = (False, error)
            pickle.dump(outcome, channel)
            channel.flush()
    except EOFError:
        status = 0
    finally:
        os._exit(status)


def placed(ruleset: Ruleset, tree: Path) -> Ruleset:
    """`ruleset`, which was compiled for the root of the cgroup tree, for the slice in `tree`."""

    def there(condition: Condition) -> Condition:
        return replace(condition, path=slice_for_nft(tree)) if isinstance(condition, InCgroup) else condition

    chains = (
        replace(c, rules=tuple(replace(rule, when=tuple(map(there, rule.when))) for rule in c.rules))
        for c in ruleset.chains
    )
    return replace(ruleset, chains=tuple(chains))


# --- in the actor that plays the agent: a bystander, as the real one is ---

_nft: list[Nft] = []


def _firewall() -> Nft:
    if not _nft:
        _nft.append(Nft())
    return _nft[0]


def _load(
    policy: Policy, labels: Mapping[str, int], tree: Path, places: Mapping[str, str], resolver: Resolver | None
) -> None:
    nft, now = _firewall(), datetime.now(UTC)
    levels = questions.levels(places, DEPTH)
    ruleset = compile_policy(policy, Live(now, labels, DEPTH, levels, resolver, slice_for_nft(tree)))
    held = nft.snapshot()
    chains = {chain.name for chain in ruleset.chains}
    kept = {
        name: {cgroup: v for cgroup, v in bound.items() if name in ruleset.maps and v[1] in chains}
        for name, bound in held.bindings.items()
    }
    if held.exists:
        nft.bind(kept)
    nft.load(render_nft.script(ruleset, held.present, now))
    maps: dict[str, dict[int, tuple[str, str]]] = {name: {} for name in ruleset.maps}
    for path, bindings in _bound(policy, places, ruleset):
        for name, verb, chain in bindings:
            maps[name][os.stat(tree / path).st_ino] = (verb, chain)
    nft.bind(maps)
    _say_there(ruleset.set_names)


def _say_there(names: Sequence[str], seconds: float = 3600) -> None:
    """As the daemon does, for longer than any test lasts."""
    there = [name for name in (LISTENING, ANSWERING) if name in names]
    name_sets.say_there(_firewall(), there, seconds=seconds)


def _say_gone() -> None:
    declared = _firewall().sets()
    name_sets.say_there(_firewall(), (), [name for name in (LISTENING, ANSWERING) if name in declared])


def _bound(policy: Policy, places: Mapping[str, str], ruleset: Ruleset) -> Iterator[Bound]:
    for name in policy.workloads:
        yield slice_of(name), cgroup_maps.bindings(name)
    for path, name in places.items():
        yield path, cgroup_maps.place_bindings(name, questions.level(path, DEPTH))
    if ruleset.by_name:
        yield RESOLVER, cgroup_maps.RESOLVER_BINDINGS
    for name in ruleset.by_name:
        yield slice_of(name), cgroup_maps.name_bindings(name)
    for path, name in places.items():
        if ruleset.by_name:
            whose = name if name in ruleset.by_name else None
            yield path, cgroup_maps.name_bindings(whose, questions.level(path, DEPTH))


def _learn(opened: Sequence[Opened]) -> None:
    name_sets.NameSets(_firewall()).learn(opened)


def _learned(set_names: Sequence[str]) -> list[Opened]:
    return list(name_sets.learned(_firewall(), set_names))


def _retract(gone: Sequence[Retract]) -> None:
    name_sets.NameSets(_firewall()).retract(gone)


def _counters() -> dict[str, int]:
    return {name: packets for name, (packets, _) in _firewall().counters().items()}


def _run(script: str) -> str:
    return _firewall()._library.run(script)


class Governed:
    """A lab in which policies are in force."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.agent = Actor(lab.host)
        self.policy = Policy()
        self._labels: dict[str, int] = {}

    def load(
        self,
        *workloads: str,
        places: Mapping[str, str] = NOWHERE,
        resolver: Resolver | None = None,
        host: str = "version: 1\n",
        until: datetime | None = None,
    ) -> None:
        """Put these rule files (`rules`) in force: the change against what was, in one transaction.

        `places`: cgroups, by path in the lab's subtree, that are bound where they are -> workload.  Without a
        `resolver` rules by name open nothing.  `host` is penstock.yaml.  Who is observed is so up to
        `until`.
        """
        policy = policy_of(*workloads, host=host)
        lent = {name: replace(w, until=until) for name, w in policy.workloads.items() if w.mode is Mode.OBSERVE}
        self.policy = policy = replace(policy, workloads={**policy.workloads, **lent})
        for name in policy.workloads:
            self._labels.setdefault(name, label_bits.FIRST_LABEL + len(self._labels))
        for path in (*map(slice_of, policy.workloads), *places, RESOLVER):
            self.agent(os.makedirs, self.lab.cgroup / path, exist_ok=True)
        self.agent(_load, policy, self._labels, self.lab.cgroup, places, resolver)

    def nobody_is_there(self) -> None:
        """As some seconds after the daemon's end."""
        self.agent(_say_gone)

    def learn(self, workload: str, name: str, *addresses: str, seconds: float = 600) -> None:
        """As after an answer: open these addresses for the rules that `name` matches.  No address is filtered."""
        now = datetime.now(UTC)
        rules = name_rules.Index(name_rules.name_rules(self.policy, self.policy.workloads[workload], now)).of(name)
        assert rules, f"{workload} has no rule for {name}"
        opened = [
            Opened(name_chains.learned_set(workload, group.id, ip.version), ip.packed, name, seconds)
            for ip in map(ip_address, addresses)
            for group in name_rules.groups(rules)
        ]
        self.agent(_learn, opened)

    def run_out(self, workload: str, name: str, *addresses: str) -> None:
        """As when no answer has these addresses for long: they are gone, what they let in is not."""
        self.learn(workload, name, *addresses, seconds=0.001)
        eventually(lambda: not set(addresses) & set(self.held(workload)))

    def held(self, workload: str, *, flows: bool = False) -> dict[str, float]:
        """Seconds that each learned address of a workload still counts, or flows to it are remembered.

        Of those with the same address the one that lasts longest.
        """
        rules = name_rules.name_rules(self.policy, self.policy.workloads[workload], datetime.now(UTC))
        name = name_chains.flow_set if flows else name_chains.learned_set
        sets = [name(workload, group.id, family) for group in name_rules.groups(rules) for family in (4, 6)]
        found: list[Opened] = self.agent(_learned, sets)
        ends = sorted((o.seconds, str(ip_address(name_sets.called(o.address)))) for o in found)
        return {address: seconds for seconds, address in ends}

    def flows(self, workload: str, address: str) -> list[float]:
        """Of each flow to that address for how many seconds it is remembered."""
        rules = name_rules.name_rules(self.policy, self.policy.workloads[workload], datetime.now(UTC))
        ip = ip_address(address)
        sets = [name_chains.flow_set(workload, group.id, ip.version) for group in name_rules.groups(rules)]
        found: list[Opened] = self.agent(_learned, sets)
        return [o.seconds for o in found if name_sets.called(o.address) == ip.packed]

    def revoke(self, workload: str, address: str) -> None:
        """Only that: what is remembered of flows to it stays."""
        rules = name_rules.name_rules(self.policy, self.policy.workloads[workload], datetime.now(UTC))
        for group in name_rules.groups(rules):
            name = name_chains.revoked_set(workload, group.id, ip_address(address).version)
            self.nft(f"add element inet penstock {name} {{ {address} timeout 1h }}")

    def retract(self, workload: str, *addresses: str) -> None:
        """As after a rule went: take these addresses, and the flows to them, out of all its rules."""
        rules = name_rules.name_rules(self.policy, self.policy.workloads[workload], datetime.now(UTC))
        gone = [
            Retract(name(workload, group.id, ip.version), frozenset((ip.packed,)))
            for ip in map(ip_address, addresses)
            for group in name_rules.groups(rules)
            for name in (name_chains.learned_set, name_chains.flow_set)
        ]
        self.agent(_retract, gone)

    def resolver(self) -> Actor:
        """A process where the resolver runs."""
        return Actor(self.lab.host, RESOLVER)

    def counters(self) -> dict[str, int]:
        """Packets by counter."""
        found: dict[str, int] = self.agent(_counters)
        return found

    def nft(self, script: str) -> str:
        """Run a script of nft as another tool of the host would."""
        text: str = self.agent(_run, script)
        return text

    def actor(self, workload: str | None = None, user: str = "root") -> Actor:
        """A process of that workload, or a bystander."""
        return Actor(self.lab.host, slice_of(workload) if workload else None, user)

    def close(self) -> None:
        """End the agent's process; the rules stay with the lab."""
        self.agent.close()


def eventually(condition: Callable[[], bool], timeout: float = 5) -> None:
    """Ask until it is so; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.002)
