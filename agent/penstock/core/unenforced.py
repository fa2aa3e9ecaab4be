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
    """One warning for each rule, each `match` and each setting of the host that the kernel does not see yet."""
    problems = []
    if policy.admin_ports.ranges:
        text = "`admin_ports` is understood, not yet enforced"
        problems.append(_warning(policy.admin_ports_place, text, "until then they are as open as without it"))
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
    parts = [peer for peer in rule.peers if is_later(policy, peer)]
    taken_out = [peer for peer in rule.excepted if is_later(policy, peer)]
    unseen = [peer for peer in rule.peers if isinstance(peer, WorkloadPeer | HostPeer)]
    if rule.excepted and unseen:
        what = f"`{shown(peer_text(unseen[0]))}`"
        text = f"`except` beside {what} is understood, not yet enforced"
        yield _warning(rule.place, text, f"until then {what} is denied: give it a rule of its own")
    elif taken_out:
        what = ", ".join(shown(peer_text(peer)) for peer in taken_out[:3])
        text = f"`except` of {what} is understood, not yet enforced"
        yield _warning(rule.place, text, "until then the whole rule is denied")
    elif parts:
        more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
        what = ", ".join(f"`{shown(peer_text(peer))}`" for peer in parts[:3])
        text = f"{what}{more}: understood, not yet enforced"
        hint = "until then it is denied"
        if len(parts) < len(rule.peers):
            hint += "; the rest of the rule is enforced"
        yield _warning(rule.place, text, hint)


def is_later(policy: Policy, peer: Peer) -> bool:
    """Whether the kernel is not told about such a peer yet: what only it allows is denied."""
    if isinstance(peer, NetworkPeer):
        return bool(policy.networks[peer.name].interface)
    if isinstance(peer, PlanePeer):
        return any(network.interface for network in policy.of_plane(peer.plane))
    return False


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
