"""What is understood and not yet enforced: said plainly, because until then it is denied.

Each entry goes away with the work that enforces it.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.core.language.reading import shown
from penstock.core.language.rule_ids import peer_text
from penstock.core.policy import (
    HostPeer,
    Match,
    NetworkPeer,
    Peer,
    Place,
    PlanePeer,
    Policy,
    Rule,
    WorkloadPeer,
)
from penstock.core.problems import Problem

CODE = "not-yet-enforced"


def unenforced(policy: Policy) -> list[Problem]:
    """One warning for each rule and each `match` that the kernel does not see yet."""
    problems = []
    for workload in policy.workloads.values():
        later = [m for m in workload.match if m.container or m.bridge or (m.unit and m.exe)]
        if later:
            what = ", ".join(shown(_match_text(match)) for match in later[:3])
            text = f"recognising {what} is not yet built"
            hint = f"put processes in with `penstock run {workload.name} -- COMMAND`"
            problems.append(_warning(workload.place, text, hint))
        for rule in workload.rules:
            problems.extend(_of_rule(policy, rule))
    return problems


def _of_rule(policy: Policy, rule: Rule) -> Iterator[Problem]:
    # The same words for the rules of one preset: it stands in one line of the file.
    taken_out = [peer for peer in rule.excepted if _by_interface(policy, peer)]
    if taken_out:
        what = ", ".join(shown(peer_text(peer)) for peer in taken_out[:3])
        text = f"`except` of {what} is understood, not yet enforced"
        yield _warning(rule.place, text, "until then the whole rule is denied")
        return
    unseen = [peer for peer in rule.peers if is_later(policy, rule, peer)]
    if unseen:
        what = f"`{shown(peer_text(unseen[0]))}`"
        if isinstance(unseen[0], PlanePeer):
            what = f"{what} by interface"
        text = f"`except` beside {what} is understood, not yet enforced"
        yield _warning(rule.place, text, f"until then {what} is denied: give it a rule of its own")


def is_later(policy: Policy, rule: Rule, peer: Peer) -> bool:
    """Whether the kernel is not told yet of `peer`, or of a part of it, in `rule`: what only it allows is denied.

    Who is at the other end, or over which interface, says nothing about addresses that could be taken out of it.
    """
    if any(_by_interface(policy, other) for other in rule.excepted):
        return True
    return bool(rule.excepted) and (isinstance(peer, WorkloadPeer | HostPeer) or _by_interface(policy, peer))


def _by_interface(policy: Policy, peer: Peer) -> bool:
    if isinstance(peer, NetworkPeer):
        return bool(policy.networks[peer.name].interface)
    return isinstance(peer, PlanePeer) and any(n.interface for n in policy.of_plane(peer.plane))


def _match_text(match: Match) -> str:
    fields = (
        ("unit", match.unit),
        ("container", match.container),
        ("bridge", match.bridge),
        ("exe", match.exe),
    )
    return " and ".join(f"{key} {value}" for key, value in fields if value)


def _warning(place: Place, message: str, hint: str) -> Problem:
    return Problem(place, "warning", CODE, message, hint)
