"""A lab in which a policy is put into the kernel and probes are sent through it, many to a policy.

The world is one remote host that owns every address of `universe`.  Of each workload one agent runs in the
workload's cgroup, one of them in place and not in its slice; one more runs outside as a bystander, which also
talks to the kernel.
"""

from __future__ import annotations

import itertools
import json
import select
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from penstock.core import cgroup_maps, chains, compile, label_bits, name_elements, render_nft
from penstock.core.connection import Connection
from penstock.core.learned import Learned
from penstock.core.policy import Address, Direction, Mode, Policy
from penstock.core.questions import level, levels
from penstock.core.render_nft import Present
from penstock.core.verdict import Live, Verdict, judge
from penstock.demo.host import Host
from penstock.demo.lab import Lab
from penstock.kernel.cgroup import slice_for_nft

from . import agent as agent_program
from .universe import ADDRESSES, BYSTANDER, OWN, PORTS, WORKLOADS, Found, Probe

NOTHING: Found = {}

SLICE = "penstock.slice"
SLICE_DEPTH = 2  # below the lab's own cgroup
PLACES = {"alpha": "system.slice/system-alpha.slice/alpha@1.service"}
LEVELS = levels(PLACES.values(), SLICE_DEPTH)
FIRST_SOURCE, LAST_SOURCE = 10_000, 59_999
SOON = 300.0  # milliseconds; a refusal that is told comes in less than one, a dropped packet never
UNLIMITED = {
    "ipv4/icmp_ratelimit": "0",
    "ipv6/icmp/ratelimit": "0",
    "ipv4/icmp_msgs_per_sec": "1000000",
    "ipv4/icmp_msgs_burst": "1000000",
}
"""A refusal that is held back by the kernel's limit looks like a drop."""


def _unlimit() -> None:
    for name, value in UNLIMITED.items():
        with suppress(OSError):  # the last two are no namespace's own on older kernels
            Path("/proc/sys/net", name).write_text(value)


class Agent:
    """The near end of an agent process."""

    def __init__(self, host: Host, arguments: list[str], cgroup: str | None = None) -> None:
        self._process = host.popen(
            [sys.executable, agent_program.__file__, *arguments],
            cgroup=cgroup,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.answer()

    def ask(self, command: str, *arguments: Any) -> Any:
        """Run a command there to its end."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], 20)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise TimeoutError("no answer from an agent")
        status, value = json.loads(line)
        if status != "ok":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a probe."""

    arrived: bool  # the other end saw it
    answer: str  # "ok" when the sender got an answer, "timeout", or an errno's name
    ms: float
    source: int  # the port it came from


class Bench:
    """A context manager; see the module."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._numbers = itertools.count()
        self._tokens = itertools.count()
        self.present = Present()
        self.policy = Policy()
        self.now = datetime.now(UTC)

    def __enter__(self) -> Bench:
        own = [address for pair in OWN.values() for address in pair]
        world = [str(address) for address in ADDRESSES]
        self.lab = self._stack.enter_context(Lab({"world": world}, [*own, *BYSTANDER]))
        remote = self.lab.remote["world"]
        self._meet(self.lab.host, remote, world)
        self._meet(remote, self.lab.host, [*own, *BYSTANDER])
        self.lab.host.call(_unlimit)
        barrier = str(agent_program.BARRIER_PORT)
        ports = ",".join(map(str, PORTS))
        self.world = self._agent(remote, ["--sniff", f"{barrier},{ports}", "0.0.0.0", "::"])
        self.bystander = self._agent(self.lab.host, [barrier, *BYSTANDER])
        self.cgroups = {name: f"{SLICE}/{SLICE[:-6]}-{escape(name)}.slice" for name in WORKLOADS} | PLACES
        self.agents = {
            name: self._agent(self.lab.host, [f"{barrier},{ports}", *OWN[name]], self.cgroups[name])
            for name in WORKLOADS
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _agent(self, host: Host, arguments: list[str], cgroup: str | None = None) -> Agent:
        made = Agent(host, arguments, cgroup)
        self._stack.callback(made.close)
        return made

    @staticmethod
    def _meet(here: Host, there: Host, addresses: Sequence[str]) -> None:
        """Tell `here` the hardware address of `there`: a packet that waits for it would be overtaken."""
        links = there.run(["ip", "-o", "link", "show", "eth0"]).stdout
        hardware = links.partition("link/ether ")[2].split()[0]
        lines = [f"neigh replace {a} lladdr {hardware} nud permanent dev eth0\n" for a in addresses]
        here.run(["ip", "-batch", "-"], input="".join(lines))

    # --- the kernel ---

    def load(self, policy: Policy, now: datetime, found: Found = NOTHING) -> None:
        """Put `policy` into force, from whatever was before; `found` is what look-ups said since."""
        self.policy, self.now, self.found = policy, now, found
        labels = {name: label_bits.FIRST_LABEL + n for n, name in enumerate(sorted(policy.workloads))}
        place = slice_for_nft(self.lab.cgroup)
        live = compile.Live(now, labels, SLICE_DEPTH, LEVELS, compile.Resolver(), place)
        ruleset = compile.compile_policy(policy, live)
        gone, opened = self._learned(policy, now, found)
        script = render_nft.script(ruleset, self.present, now)
        self.bystander.ask("load", script, self._bindings(), gone, opened)
        self.present = Present.of(ruleset, now)

    def _learned(self, policy: Policy, now: datetime, found: Found) -> tuple[list[Any], list[Any]]:
        """As the daemon does it: what must go out of the sets, and what comes in."""
        learned, names = Learned(), name_elements.Names(policy, now)
        for workload, asked in found.items():
            for name, addresses in asked.items():
                if names.of(workload, name):
                    learned.learn(workload, name, [(a.packed, 3600) for a in addresses], now.timestamp())
        every = tuple(names.rules)
        gone = name_elements.retractions(names, every, learned, before=name_elements.Names(), strangers=True)
        opened = name_elements.all_opened(names, every, learned, now)
        return (
            [[r.set, sorted(a.hex() for a in r.addresses), r.others] for r in gone],
            [[o.set, o.address.hex(), o.name, o.seconds] for o in opened],
        )

    def unbind(self) -> None:
        """Leave the table, and govern nobody."""
        script = "".join(f"flush chain inet penstock {name}\n" for name in ("output", "input"))
        self.bystander.ask("load", script, {name: {} for name in cgroup_maps.maps(LEVELS)}, [], [])

    def reset(self) -> None:
        """Remove the table."""
        self.bystander.ask("load", "add table inet penstock\ndelete table inet penstock\n", {}, [], [])
        self.present = Present()

    def _bindings(self) -> Mapping[str, Mapping[str, tuple[str, str]]]:
        result: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in cgroup_maps.maps(LEVELS)}
        bound = [(self.cgroups[name], cgroup_maps.bindings(name)) for name in WORKLOADS if name not in PLACES]
        bound += [
            (path, cgroup_maps.place_bindings(name, level(path, SLICE_DEPTH))) for name, path in PLACES.items()
        ]
        for path, bindings in bound:
            for name, verb, chain in bindings:
                result[name][str(self.lab.cgroup / path)] = (verb, chain)
        return result

    def denied(self, workload: str) -> int:
        """Packets that the kernel counted as denied, or in observe mode would have."""
        counters = self.bystander.ask("counters")
        return sum(counters[chains.counter_name(direction, workload)] for direction in Direction)

    # --- packets ---

    def send(self, probes: Sequence[Probe], *, keep: Collection[int] = ()) -> list[Outcome]:
        """Send all probes.  `keep` has the places of those whose connections stay open, for `push`."""
        sources = [FIRST_SOURCE + next(self._numbers) % (LAST_SOURCE - FIRST_SOURCE) for _ in probes]
        answers: dict[int, tuple[str, float]] = {}
        seen: set[tuple[Any, ...]] = set()
        for name in WORKLOADS:
            for direction in Direction:
                chosen = {
                    place: self._wire(probe, sources[place], place)
                    for place, probe in enumerate(probes)
                    if (probe.workload, probe.direction) == (name, direction)
                }
                if not chosen:
                    continue
                agent = self.agents[name] if direction is Direction.OUT else self.world
                kept = [place for place in keep if place in chosen]
                for place, answer in agent.ask("send", list(chosen.values()), kept).items():
                    answers[int(place)] = (answer[0], answer[1])
                seen |= self._arrived(name, direction)
        return [
            Outcome(_key(probe, source) in seen, *answers[place], source)
            for place, (probe, source) in enumerate(zip(probes, sources, strict=True))
        ]

    def _wire(self, probe: Probe, source: int, place: int) -> list[Any]:
        if probe.direction is Direction.OUT:
            return [place, probe.protocol, "", source, str(probe.remote), probe.port or 0]
        return [place, probe.protocol, str(probe.remote), source, probe.own, probe.port]

    def _arrived(self, workload: str, direction: Direction) -> set[tuple[Any, ...]]:
        """What the far end saw since it was last asked, as `_key` says it."""
        if direction is Direction.IN:
            heard = self._collect(self.agents[workload])["heard"]
            return {(protocol, source, port) for protocol, source, port, _ in heard}
        wire = self._collect(self.world)["wire"]
        return {(protocol, port, peer, peer_port) for protocol, _, port, peer, peer_port in wire}

    def _collect(self, agent: Agent) -> dict[str, list[Any]]:
        """What `agent` saw before now: a bystander's datagram, sent now, is behind everything else."""
        token = f"token {next(self._tokens)}"
        if agent is self.world:
            self.bystander.ask("token", token, str(ADDRESSES[0]))
        else:  # its port is denied like any other: let it in over the far end's own listener
            self.world.ask("token", f"probe {token}", BYSTANDER[0])
            self.bystander.ask("collect", f"probe {token}")
            return dict(agent.ask("drain"))
        return dict(agent.ask("collect", token))

    def push(self, probes: Mapping[int, tuple[Probe, int]]) -> set[int]:
        """Send once more on kept connections; the places of those whose packet arrived.

        `probes`: place -> (probe, its source port).
        """
        arrived: set[int] = set()
        for name in WORKLOADS:
            for direction in Direction:
                chosen = [
                    place
                    for place, (probe, _) in probes.items()
                    if (probe.workload, probe.direction) == (name, direction)
                ]
                if not chosen:
                    continue
                here, there = self.agents[name], self.world
                if direction is Direction.IN:
                    here, there = there, here
                here.ask("push", chosen)
                texts = {text for _, _, _, text in self._collect(there)["heard"]}
                arrived |= {place for place in chosen if f"push {place}" in texts}
        return arrived

    def forget(self) -> None:
        """Close all kept connections."""
        for agent in (*self.agents.values(), self.world):
            agent.ask("forget")

    def stolen_reply(self, probe: Probe) -> bool:
        """Whether a datagram arrives that only looks like a reply.

        A stranger sends to a bystander's port, then the workload takes that port and sends to the stranger.
        """
        source = FIRST_SOURCE + next(self._numbers) % (LAST_SOURCE - FIRST_SOURCE)
        remote, own = str(probe.remote), probe.own
        self.bystander.ask("squat", own, probe.port)
        self.world.ask("datagram", remote, source, own, probe.port, "opens")
        assert self.bystander.ask("leave", probe.port) == "opens"
        self.agents[probe.workload].ask("datagram", own, probe.port, remote, source, "reply")
        wire = self._collect(self.world)["wire"]
        return any((p, port, peer) == ("udp", probe.port, remote) for p, _, port, peer, _ in wire)

    # --- what the policy says ---

    def verdict(self, probe: Probe) -> Verdict:
        """The reference evaluator's answer; odd packets (`universe.ODD`) are none that can be allowed."""
        connection = Connection(
            probe.workload, probe.direction, probe.protocol, probe.remote, probe.port, interface="eth0"
        )
        learned: dict[str, dict[Address, list[str]]] = {}
        for workload, asked in self.found.items():
            for name, addresses in asked.items():
                for a in addresses:
                    learned.setdefault(workload, {}).setdefault(a, []).append(name)
        return judge(self.policy, Live(self.now, learned), connection)

    def passes(self, probe: Probe) -> bool:
        """Whether the packet shall get through: in observe mode it does whatever the verdict."""
        return self.verdict(probe).allow or self.policy.workloads[probe.workload].mode is Mode.OBSERVE


def _key(probe: Probe, source: int) -> tuple[Any, ...]:
    if probe.direction is Direction.IN:
        return probe.protocol, str(probe.remote), source
    protocol = "udp" if probe.protocol in ("options", "foreign") else probe.protocol
    return protocol, source, str(probe.remote), probe.port or 0


def escape(name: str) -> str:
    """A workload's name as systemd writes it into the name of a slice."""
    return name.replace("-", "\\x2d")
