"""What the daemon knows of names: of one, of those of an address (the command `names`), or of those of rules."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

from penstock.core import names
from penstock.core.asked import Asked
from penstock.core.learned import Learned
from penstock.core.name_rules import Index, groups, name_rules, resolves
from penstock.core.policy import Address, Policy, Workload
from penstock.core.text import time_text
from penstock.core.wire import Json

MOST_NAMES = 100
"""Names of an address that are told: for each way to be open the one that ends last, then the others so."""


def names_answer(policy: Policy, learned: Learned, asked: Asked, arguments: Json, now: datetime) -> Json:
    """Answer `names {"workload", "name"}`; the name may be an address.  ValueError, with a sentence for the peer.

    `resolving`: its look-ups go to our resolver.  `rules`: the patterns that stand for the name.  `addresses`:
    where it is, and `names`: what led to the address, also what is over, with ends.  `asked`: when it was asked
    last and no rule had it, or one that was lost since, as by a lock; a rule may have it again.  `reason` is null
    where the answer was given all the same.
    """
    workload = policy.workloads.get(arguments["workload"])
    if workload is None:
        raise ValueError("no such workload in the applied policy")
    nothing: Json = {"rules": [], "addresses": [], "names": [], "asked": None}
    address = _address(arguments["name"])
    if address is None:
        told = _of_name(policy, workload, learned, asked, names.normalise(arguments["name"]), now)
    else:
        told = _of_address(policy, workload, learned, asked, address, now)
    return {"resolving": resolves(workload), "mode": workload.mode.value, **nothing, **told}


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _of_name(
    policy: Policy, workload: Workload, learned: Learned, asked: Asked, name: str, now: datetime
) -> Json:
    rules = Index(name_rules(policy, workload, now)).of(name)
    found = learned.addresses_of(workload.name, name, now.timestamp())
    refused = asked.last_refused(workload.name, name)
    return {
        "rules": list(dict.fromkeys(rule.pattern for rule in rules)),
        "addresses": [{"address": str(ip_address(a)), "until": _time(until)} for a, until in found],
        "asked": refused and {"name": name, "when": _time(refused.when), "reason": refused.reason},
    }


def names_by_rule(policy: Policy, workload: str, learned: Learned, now: datetime) -> dict[str, int]:
    """For each rule of the workload that has names: how many of those it stands for are learned now."""
    rules = name_rules(policy, policy.workloads[workload], now)
    index, found = Index(rules), dict.fromkeys((rule.rule for rule in rules), 0)
    for name in learned.names(workload):
        for rule in {rule.rule for rule in index.of(name)}:
            found[rule] += 1
    return found


def _of_address(
    policy: Policy, workload: Workload, learned: Learned, asked: Asked, address: Address, now: datetime
) -> Json:
    entries = learned.names_of(workload.name, address.packed)
    if len(entries) > MOST_NAMES:
        index = Index(name_rules(policy, workload, now))
        first = {groups(index.of(entry.name)): entry for entry in reversed(entries)}
        told = list(dict.fromkeys([*first.values(), *entries]))[:MOST_NAMES]
        entries = tuple(sorted(told, key=lambda entry: -entry.until))
    observed = asked.about(workload.name, address.packed)
    return {
        "names": [{"name": entry.name, "until": _time(entry.until)} for entry in entries],
        "asked": observed and {"name": observed.name, "when": _time(observed.when), "reason": None},
    }


def _time(seconds: float) -> str | None:
    return time_text(datetime.fromtimestamp(seconds, UTC))
