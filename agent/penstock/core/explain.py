"""Why a packet was denied, in words, and what would let it through."""

from __future__ import annotations

from datetime import datetime

from penstock.core.blocks import Explanation
from penstock.core.log_prefix import Kind
from penstock.core.packets import Denied
from penstock.core.policy import Direction, Policy
from penstock.core.verdict import Connection, Live, Reason, Verdict, judge

FIXED = {
    Kind.SOURCE: Explanation("foreign-source", "it left with a source address that is not this host's"),
    Kind.UNBOUND: Explanation(
        "unbound", "the process is in penstock.slice and belongs to no workload of the policy"
    ),
}
REPLY = Explanation("reply", "an answer to a client whom no ingress rule allows now")
CHANGED = Explanation("changed", "denied then; the rules have changed since and would allow it now")
UNWISE = frozenset({Reason.METADATA, Reason.LINK_LOCAL, Reason.LOCKED})
"""Here a rule is not what helps, or nothing to be offered lightly."""


def explain(policy: Policy, denied: Denied, now: datetime) -> Explanation:
    """Explain one log record under the policy that is in force."""
    if denied.kind in FIXED:
        return FIXED[denied.kind]
    connection = Connection(
        workload=denied.workload,
        direction=denied.direction,
        protocol="icmp" if denied.protocol in ("icmp", "icmpv6") else denied.protocol,
        remote=denied.remote,
        port=denied.port,
    )
    verdict = judge(policy, Live(now), connection)
    if verdict.allow:
        return REPLY if denied.kind is Kind.REPLY else CHANGED
    if denied.kind is Kind.REPLY:
        return Explanation(REPLY.reason, REPLY.text, nearest=verdict.nearest)
    return Explanation(
        reason=verdict.reason.value,
        text=verdict.text,
        nearest=verdict.nearest,
        allow=_remedy(policy, denied, verdict),
    )


def _remedy(policy: Policy, denied: Denied, verdict: Verdict) -> str | None:
    workload = policy.workloads.get(denied.workload)
    if workload is None or verdict.reason in UNWISE or denied.port is None:
        return None
    port = str(denied.port) if denied.protocol == "tcp" else f"{denied.port}/{denied.protocol}"
    remote = f'"{denied.remote}"' if ":" in str(denied.remote) else str(denied.remote)
    side, peer = ("egress", "to") if denied.direction is Direction.OUT else ("ingress", "from")
    rule = f"- {{{peer}: {remote}, ports: [{port}]}}"
    return f"add to {side} in {workload.place.file or workload.name}:  {rule}  then: penstock apply"
