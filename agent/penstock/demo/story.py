"""The play: first without penstock, then with it, in both families, told so that a person can follow.

Every claim is an observation at the remote end.  The order of things is here, what an act does is in
`acts`, and what it is played on in `stage`.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from penstock.core.text import printable
from penstock.demo import probe
from penstock.demo.acts import ACTS, DEFAULT_ACTS, Act
from penstock.demo.lab import Lab
from penstock.demo.recorder import Arrival
from penstock.demo.stage import Observation, Stage, Witness
from penstock.errors import PenstockError

FAMILIES = (4, 6)
REFUSED_WITHIN = 500.0
"""Milliseconds in which a refused server must know; it is a few, on a busy machine more."""

LOGGED_WITHIN = 3.0
"""Seconds in which a refusal must be in the block log."""

_COLORS = {"good": "32", "bad": "31", "dim": "2", "bold": "1"}


class Teller:
    """Prints the story; in colours only on a terminal whose owner does not mind."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._colors = stream.isatty() and not os.environ.get("NO_COLOR")

    def paint(self, style: str, text: str) -> str:
        """`text` in a style."""
        return f"\x1b[{_COLORS[style]}m{text}\x1b[0m" if self._colors else text

    def say(self, text: str = "") -> None:
        """One line, or several."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def heading(self, text: str) -> None:
        """A line that begins a part."""
        self.say()
        self.say(self.paint("bold", text))

    def shown(self, text: str) -> None:
        """What a program printed or a file has, set apart."""
        for line in text.rstrip().splitlines():
            self.say(self.paint("dim", "    " + printable(line, 400)))

    def observation(self, seen: Observation) -> None:
        """One line with its evidence."""
        mark = self.paint("good", "ok  ") if seen.ok else self.paint("bad", "FAIL")
        took = "" if seen.ms is None else f" ({seen.ms:.1f} ms)"
        self.say(f"  {mark} IPv{seen.family}  {seen.name}: {seen.observed}{took}")
        if not seen.ok:
            self.say(f"             expected: {seen.expected}")


class Play:
    """Plays acts on a stage and keeps what was observed."""

    def __init__(self, stage: Stage, teller: Teller) -> None:
        self._stage = stage
        self._lab = stage.lab
        self._teller = teller
        self.observations: list[Observation] = []

    def without(self, act: Act) -> None:
        """The attack on a host without penstock: it arrives."""
        self._teller.heading(f"Without penstock: {act.title}")
        self._teller.say(textwrap.fill(act.explains, 100, initial_indent="  ", subsequent_indent="  "))
        self._teller.shown("$ " + act.request(self._stage.stranger.host, 4))
        act.start(self._lab, [], {})
        for family in FAMILIES:
            self._call(act, "the attack arrives", self._stage.stranger, family, arrives=True)
        act.stop()

    def govern(self, acts: Sequence[Act]) -> None:
        """Write the rules and start the daemon."""
        self._teller.heading("Now with penstock")
        for act in acts:
            text = self._stage.write_rules(act)
            self._teller.say(f"  rules.d/{act.workload}.yaml:")
            self._teller.shown(text)
        start = time.monotonic()
        self._stage.start_daemon()
        self._teller.say(f"  the daemon is in force after {time.monotonic() - start:.1f} s")

    def within(self, act: Act) -> None:
        """The same attack on the governed server."""
        self._teller.heading(f"With penstock: {act.title}")
        prefix = [self._stage.program, "run", act.workload, "--"]
        self._teller.shown(f"$ penstock run {act.workload} -- ...")
        act.start(self._lab, prefix, self._stage.env)
        for family in FAMILIES:
            self._call(act, "the attack is refused", self._stage.stranger, family, arrives=False)
        for family in FAMILIES if act.registry else ():
            self._call(act, "the allowed registry still works", self._stage.registry, family, arrives=True)
        for family in FAMILIES:
            self._bystander(act, family)

    def commands(self, acts: Sequence[Act]) -> None:
        """What the operator then types."""
        self._teller.heading("What the operator sees")
        stranger = self._stage.stranger.host
        for act in acts:
            for family in FAMILIES:
                self._wait_logged(act, stranger.address(family))
        self._command(acts[0], 4, "status", status=0, names=[act.workload for act in acts])
        self._command(acts[0], 4, "blocks", status=0, names=[stranger.v4, stranger.v6])
        for act in acts:
            for family, where in ((4, stranger.v4), (6, f"[{stranger.v6}]")):
                peer = f"{where}:{act.port}"
                self._command(act, family, "why", act.workload, peer, status=1, names=[act.workload])

    def _wait_logged(self, act: Act, address: str) -> None:
        """The log is written a moment after the refusal; whether it is complete, `blocks` then shows."""
        deadline = time.monotonic() + LOGGED_WITHIN
        while not self._stage.blocked(act.workload, address) and time.monotonic() < deadline:
            time.sleep(0.05)

    def shell(self) -> None:
        """Leave the person in the lab."""
        self._stage.shell()

    def _call(self, act: Act, name: str, witness: Witness, family: int, *, arrives: bool) -> None:
        address = witness.host.address(family)
        witness.mark()

        def seen() -> bool:
            if arrives:
                return any(a.event == "data" for a in witness.since(family))
            return self._stage.blocked(act.workload, address)

        call = act.attack(self._lab, witness.host, family, seen)
        came = witness.since(family)
        if arrives:
            ok = any(a.event == "connect" for a in came)
        else:  # a server that calls by itself must have tried, or its silence would say nothing
            ok = not came and (seen() if act.unasked else call.ms < REFUSED_WITHIN)
        words = [arrived(came, witness.host.name)]
        words += [f"for {act.calls}"] if act.calls and any(act.calls in a.data for a in came) else []
        words += [f"the call to {act.calls} is in the block log"] if ok and act.unasked and not arrives else []
        if call.said and not arrives and not act.unasked:
            words.append(f'the server says "{printable(call.said)}"')
        self._add(
            Observation(
                act=act.key,
                name=name,
                family=family,
                expected=expectation(witness.host.name, arrives, act.unasked),
                observed=", ".join(words),
                ms=None if act.unasked else round(call.ms, 1),
                ok=ok,
                evidence=evidence(came),
            )
        )

    def _bystander(self, act: Act, family: int) -> None:
        witness = self._stage.stranger
        witness.mark()
        attempt = self._lab.host.call(probe.tcp, witness.host.address(family), act.port)
        came = witness.since(family)
        self._add(
            Observation(
                act=act.key,
                name="another process of this host, no workload, is untouched",
                family=family,
                expected=expectation(witness.host.name, arrives=True, unasked=False),
                observed=arrived(came, witness.host.name),
                ms=round(attempt.ms, 1),
                ok=attempt.outcome == "ok" and any(a.event == "connect" for a in came),
                evidence=evidence(came),
            )
        )

    def _command(
        self, act: Act, family: int, *arguments: str, status: int, names: Iterable[str] = ()
    ) -> None:
        done = self._stage.penstock(*arguments)
        text = " ".join(["penstock", *arguments])
        self._teller.shown(f"$ {text}\n{done.stdout}{done.stderr}")
        missing = [name for name in names if name not in done.stdout]
        said = f"exit status {done.returncode}" + (f", does not name {', '.join(missing)}" if missing else "")
        expected = " ".join([f"exit status {status}", *(f"naming {name}" for name in names)])
        ok = done.returncode == status and not missing
        self._add(Observation(act.key, text, family, expected, said, None, ok), quiet=ok)

    def _add(self, seen: Observation, *, quiet: bool = False) -> None:
        self.observations.append(seen)
        if not quiet:
            self._teller.observation(seen)


def arrived(came: Sequence[Arrival], host: str) -> str:
    """In words what a witness wrote down."""
    connections = sum(a.event == "connect" for a in came)
    packets = sum(a.event == "packet" for a in came)
    if connections:
        return f"the {host} took {connections} connection{'s' if connections > 1 else ''} from {came[0].peer}"
    return f"{packets} packets reached the {host}" if packets else f"no packet reached the {host}"


def expectation(host: str, arrives: bool, unasked: bool) -> str:
    """In words what a witness should write down."""
    if arrives:
        return f"a connection at the {host}"
    return f"no packet at the {host}" + ("" if unasked else f", and an answer within {REFUSED_WITHIN:.0f} ms")


def evidence(came: Sequence[Arrival]) -> tuple[str, ...]:
    """The witness's own lines, without the data."""
    return tuple(f"{a.event} {a.protocol} {a.peer} port {a.peer_port} -> port {a.port}" for a in came[:10])


def prepare(names: Iterable[str], say: Callable[[str], None]) -> tuple[list[Act], dict[str, str]]:
    """The acts that can be played, and why each other one cannot."""
    ready: list[Act] = []
    skipped = {}
    for name in dict.fromkeys(names):
        act = ACTS[name]()
        try:
            act.prepare(say)
        except PenstockError as error:
            skipped[name] = str(error)
        else:
            ready.append(act)
    return ready, skipped


def play(names: Sequence[str], *, shell: bool = False, as_json: bool = False) -> int:
    """Play the acts of these names, by default the usual ones; the exit status of the program."""
    started = time.monotonic()
    teller = Teller(sys.stderr if as_json else sys.stdout)
    acts, skipped = prepare(names or DEFAULT_ACTS, lambda line: print(line, file=sys.stderr, flush=True))
    for name, reason in skipped.items():
        teller.say(f"Skipped: {name}: {printable(reason, 400)}")
    must = os.environ.get("CI", "").lower() in ("1", "true") or not acts
    with Lab() as lab:
        show = Play(Stage(lab), teller)
        _introduce(teller, lab)
        for act in acts:
            show.without(act)
        if acts:
            show.govern(acts)
        for act in acts:
            show.within(act)
        if acts:
            show.commands(acts)
        good = all(seen.ok for seen in show.observations) and not (skipped and must)
        _summary(teller, show.observations, skipped, time.monotonic() - started, good)
        if as_json:
            _print_json(show.observations, skipped, time.monotonic() - started, good)
        if shell:
            teller.say("A shell in the lab; every penstock command works, the servers run. Leave it with exit.")
            show.shell()
        for act in acts:
            act.stop()
    return 0 if good else 1


def _introduce(teller: Teller, lab: Lab) -> None:
    teller.say("A throw-away lab: a host with network, firewall and cgroups of its own, and two remote hosts.")
    for host in (lab.host, *lab.remote.values()):
        teller.say(f"  {host.name:<9} {', '.join(host.addresses)}")


def _summary(
    teller: Teller, seen: Sequence[Observation], skipped: dict[str, str], seconds: float, good: bool
) -> None:
    bad = sum(not one.ok for one in seen)
    text = f"{len(seen) - bad} of {len(seen)} observations as expected, {seconds:.1f} s"
    text += f", skipped: {', '.join(skipped)}" if skipped else ""
    teller.heading(teller.paint("good" if good else "bad", text))


def _print_json(seen: Sequence[Observation], skipped: dict[str, str], seconds: float, good: bool) -> None:
    whole = {
        "v": 1,
        "ok": good,
        "seconds": round(seconds, 1),
        "observations": [one.json() for one in seen],
        "skipped": [{"act": name, "reason": reason} for name, reason in skipped.items()],
    }
    print(json.dumps(whole, indent=1))
