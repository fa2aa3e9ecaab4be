"""Commands that only ask: may a process come in, what does a set hold, what is known of a name, what was hit?"""

from __future__ import annotations

from penstock.core import chain_rules, questions, status
from penstock.core.asked import Asked
from penstock.core.effects import Answer, CountHits, Effect, Refuse
from penstock.core.events import Command, Hits
from penstock.core.learned import Learned
from penstock.core.name_questions import names_answer, names_by_rule
from penstock.core.policy import Policy
from penstock.core.view import InForce, View


class Commands:
    """Remembers which workload a request is about while the kernel is asked.

    `learned` and `asked` are what the workloads looked up.
    """

    def __init__(self, learned: Learned, asked: Asked) -> None:
        self._names = learned, asked
        self._asked: dict[int, str] = {}

    def take(self, event: Command, view: View, in_force: InForce | None) -> list[Effect]:
        """What to do about `ready`, `hits`, `names`, `opens` and `holds`."""
        request, arguments = event.request, event.message.arguments
        match event.message.command:
            case "ready":
                return [Answer(request, status.ready(view, in_force, arguments["workload"]))]
            case "hits":
                return self._count_hits(request, arguments["workload"], in_force)
            case "names":
                return self._tell_names(event, in_force)
            case "opens":
                return _tell_chains(event, view, in_force)
            case _:
                return _ask_kernel(event, in_force)

    def _count_hits(self, request: int, workload: str, in_force: InForce | None) -> list[Effect]:
        if in_force is None or workload not in in_force.policy.workloads:
            return [Refuse(request, "no such workload in the applied policy")]
        self._asked[request] = workload
        return [CountHits(request, tuple(questions.sets_of(workload)))]

    def _tell_names(self, event: Command, in_force: InForce | None) -> list[Effect]:
        policy = in_force.policy if in_force else Policy()
        try:
            answer = names_answer(policy, *self._names, event.message.arguments, event.now)
        except ValueError as e:
            return [Refuse(event.request, str(e))]
        return [Answer(event.request, answer)]

    def hits(self, event: Hits, in_force: InForce | None) -> list[Effect]:
        """The answer to `hits`."""
        if event.request is None:
            return []
        workload = self._asked.pop(event.request, "")
        if in_force is None or workload not in in_force.policy.workloads:
            return [Refuse(event.request, "the policy has changed meanwhile")]
        hits = questions.hits_by_rule(in_force, workload, event.sets, event.counters)
        names = names_by_rule(in_force.policy, workload, self._names[0], event.now)
        return [Answer(event.request, {"rules": hits, "names": names})]

    def forget(self, request: int) -> None:
        """The kernel did not answer."""
        self._asked.pop(request, None)


def _tell_chains(event: Command, view: View, in_force: InForce | None) -> list[Effect]:
    """From what was loaded, as long as the kernel is known to hold it."""
    try:
        question = chain_rules.question(**event.message.arguments)
    except ValueError as e:
        return [Refuse(event.request, str(e))]
    if in_force is None or question.workload not in in_force.policy.workloads or view.agrees is not True:
        return [Answer(event.request, {"rules": None})]
    found = chain_rules.opening(in_force.ruleset, in_force.applied.labels, question, event.now)
    return [Answer(event.request, {"rules": list(found)})]


def _ask_kernel(event: Command, in_force: InForce | None) -> list[Effect]:
    policy = in_force.policy if in_force else Policy()
    try:
        question = questions.to_kernel(event.request, event.message.arguments, policy, event.now)
    except ValueError as e:
        return [Refuse(event.request, str(e))]
    if event.message.arguments["workload"] not in policy.workloads:
        return [Answer(event.request, {"holds": None, "learned": None})]
    return [question]
