"""Why a packet was denied, in words, and what would let it through."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from penstock.core import explain_names, probes
from penstock.core.asked import Asked
from penstock.core.blocks import Explanation
from penstock.core.learned import Learned
from penstock.core.log_prefix import Kind
from penstock.core.packets import Denied
from penstock.core.policy import Direction, Policy
from penstock.core.remedies import to_allow
from penstock.core.text import printable
from penstock.core.verdict import Connection, Live, Reason, Verdict, judge

FIXED = {
    Kind.SOURCE: Explanation("foreign-source", "it left with a source address that is not this host's"),
    Kind.UNBOUND: Explanation(
        "unbound", "the process is in penstock.slice and belongs to no workload of the policy"
    ),
    Kind.ADMIN: Explanation("admin-port", "an admin port of this host, closed to networks of clients"),
}
REPLY = Explanation("reply", "an answer to a client whom no ingress rule allows now")
CHANGED = Explanation("changed", "denied then; the rules have changed since and would allow it now")
LOOPBACK = "lo"
"""The interface over which this host talks to itself."""
SOMEBODY = "?"
"""Who was refused at a workload is not known; whoever is no workload would have been let in by `from: host`."""
UNWISE = frozenset({Reason.METADATA, Reason.LINK_LOCAL, Reason.LOCKED, Reason.ADMIN_PORT, Reason.CONTROL_PORT})
"""Here a rule is not what helps, or nothing to be offered lightly."""


def explain(
    policy: Policy,
    denied: Denied,
    now: datetime,
    learned: Learned | None = None,
    asked: Asked | None = None,
) -> Explanation:
    """Explain one log record under the policy that is in force.

    `learned` and `asked` tell of the names that its workload looked up.
    """
    if denied.kind in FIXED:
        return FIXED[denied.kind]
    found = _explain(policy, denied, now, learned, asked)
    if not probes.is_ours(denied.direction, denied.remote, denied.port):
        return found
    text = f"{found.text}; an address that leads nowhere: `penstock enforce` tries it"
    return replace(found, text=text, allow=None)


def _explain(
    policy: Policy, denied: Denied, now: datetime, learned: Learned | None, asked: Asked | None
) -> Explanation:
    connection = Connection(
        workload=denied.workload,
        direction=denied.direction,
        protocol="icmp" if denied.protocol in ("icmp", "icmpv6") else denied.protocol,
        remote=denied.remote,
        port=denied.port,
        peer_workload=SOMEBODY if denied.direction is Direction.IN else "",
        here=denied.kind is Kind.LOOPBACK or denied.interface == LOOPBACK,
        interface=denied.interface,
    )
    # A name that leads to this host opens nothing there, unless its rule says `private`.
    live = explain_names.live(learned, connection, now) if denied.kind is Kind.RULES else Live(now)
    verdict = judge(policy, live, connection)
    if verdict.allow:
        return REPLY if denied.kind is Kind.REPLY else _changed(live, connection)
    if denied.kind is Kind.REPLY:
        return Explanation(REPLY.reason, REPLY.text, nearest=verdict.nearest)
    why = Explanation(
        reason=verdict.reason.value,
        text=verdict.text,
        nearest=verdict.nearest,
        allow=_remedy(policy, denied, verdict),
    )
    if learned is None or asked is None:
        return why
    here = denied.kind is Kind.LOOPBACK
    by_name = explain_names.explain(policy, connection, verdict, now, learned, asked, here=here)
    if by_name is None:
        return why
    return by_name if by_name.name else replace(by_name, allow=why.allow)


def _changed(live: Live, connection: Connection) -> Explanation:
    for found in live.learned.get(connection.workload, {}).values():
        for name in found:
            text = f"denied then; learned for {printable(name)} since, and allowed now"
            return replace(CHANGED, text=text, name=name)
    return CHANGED


def _remedy(policy: Policy, denied: Denied, verdict: Verdict) -> str | None:
    workload = policy.workloads.get(denied.workload)
    if workload is None or verdict.reason in UNWISE or denied.port is None:
        return None
    return to_allow(workload, denied.direction, str(denied.remote), denied.protocol, denied.port)
