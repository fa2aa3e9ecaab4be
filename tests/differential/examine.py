"""Put a policy into the kernel, send probes, and say where kernel and reference evaluator disagree."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from penstock.core.policy import Direction, Mode

from . import universe
from .bench import SOON, Bench, Outcome
from .universe import SQUATTED, WORKLOADS, Probe

ANSWERED = ("tcp", "udp", "icmp")
"""Protocols that the far end answers."""

KEPT = 24
WATCHED = 25


@dataclass(slots=True)
class Examination:
    """One seed after the other on one bench.  `sent` and `controls` count packets that were asked about."""

    bench: Bench
    probes: int
    sent: int = 0
    controls: int = 0
    kept: dict[int, tuple[Probe, int]] | None = None

    def run(self, seed: int, *, control: bool = True) -> Iterator[str]:
        """Yield each disagreement about policy and probes of `seed`, as a sentence."""
        random = Random(seed)
        now = datetime.now(UTC)
        policy = universe.policy(random, now)
        probes = [universe.probe(random, policy) for _ in range(self.probes)]
        try:
            self.bench.load(policy, now, universe.found(random))
        except RuntimeError as error:
            yield f"seed {seed}: not loaded: {error}"
            return
        yield from self._still_flowing(seed)
        outcomes = yield from self._sent(seed, random, probes)
        yield from self._stolen_replies(seed, random)
        yield from self._watched(seed, probes)
        if control:
            yield from self._control(seed, probes, outcomes)

    def _still_flowing(self, seed: int) -> Iterator[str]:
        """Connections of the policy before: they live on just as far as this one lets them."""
        kept = self.kept or {}
        arrived = self.bench.push(kept)
        self.bench.forget()  # whatever is refused about it is refused before packets are counted
        self.kept = {}
        for place, (probe, _) in kept.items():
            if self.bench.passes(probe) != (place in arrived):
                yield self._text(seed, probe, f"established, arrived: {place in arrived}")

    def _sent(self, seed: int, random: Random, probes: list[Probe]) -> Generator[str, None, list[Outcome]]:
        bench = self.bench
        keep = [place for place, probe in enumerate(probes) if probe.protocol in ("tcp", "udp")]
        keep = random.sample(keep, KEPT)
        before = {name: bench.denied(name) for name in WORKLOADS}
        outcomes = bench.send(probes, keep=keep)
        self.sent += len(probes)
        for probe, outcome in zip(probes, outcomes, strict=True):
            passes = bench.passes(probe)
            if outcome.arrived != passes:
                yield self._text(seed, probe, f"arrived: {outcome.arrived}")
            elif probe.protocol in ANSWERED and (outcome.answer == "ok") != passes:
                yield self._text(seed, probe, f"the sender got {outcome.answer}")
            elif not passes and outcome.ms > SOON:
                yield self._text(seed, probe, f"refused only after {outcome.ms:.0f} ms")
        for name in WORKLOADS:
            if bench.policy.workloads[name].mode is not Mode.OBSERVE:
                denied = sum(probe.workload == name and not bench.passes(probe) for probe in probes)
                counted = bench.denied(name) - before[name]
                if denied != counted:
                    yield f"seed {seed}: {name}: {denied} packets denied, {counted} counted"
        self.kept = {
            place: (probes[place], outcomes[place].source) for place in keep if outcomes[place].answer == "ok"
        }
        return outcomes

    def _stolen_replies(self, seed: int, random: Random) -> Iterator[str]:
        for port in SQUATTED:
            remote = universe.address(random, random.choice((4, 6)))
            probe = Probe(random.choice(WORKLOADS), Direction.IN, "udp", remote, port)
            arrived = self.bench.stolen_reply(probe)
            self.sent += 1
            if arrived != self.bench.passes(probe):
                yield self._text(seed, probe, f"a datagram that looks like its answer, arrived: {arrived}")

    def _watched(self, seed: int, probes: list[Probe]) -> Iterator[str]:
        """In observe mode the counter says what would have been denied: one probe at a time."""
        observed = [p for p in probes if self.bench.policy.workloads[p.workload].mode is Mode.OBSERVE]
        for probe in observed[:WATCHED]:
            before = self.bench.denied(probe.workload)
            self.bench.send([probe])
            counted = self.bench.denied(probe.workload) > before
            if counted == self.bench.verdict(probe).allow:
                yield self._text(seed, probe, f"observed, counted as denied: {counted}")

    def _control(self, seed: int, probes: list[Probe], outcomes: list[Outcome]) -> Iterator[str]:
        """Whatever did not arrive arrives when nobody is governed."""
        lost = [p for p, outcome in zip(probes, outcomes, strict=True) if not outcome.arrived]
        self.bench.unbind()
        self.controls += len(lost)
        for probe, outcome in zip(lost, self.bench.send(lost), strict=True):
            if not outcome.arrived or (probe.protocol in ANSWERED and outcome.answer != "ok"):
                yield self._text(seed, probe, f"control: arrived: {outcome.arrived}, {outcome.answer}")

    def _text(self, seed: int, probe: Probe, what: str) -> str:
        mode = self.bench.policy.workloads[probe.workload].mode
        port = "" if probe.port is None else f" port {probe.port}"
        return (
            f"seed {seed}: {probe.workload} ({mode}) {probe.direction} {probe.protocol} {probe.remote}{port}:"
            f" {what}; {self.bench.verdict(probe).text}"
        )
