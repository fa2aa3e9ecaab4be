"""`penstock why`: may a workload talk to this, by which rule, and does the kernel think the same?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from penstock.cli.applied import applied_policy, complete_workload, no_such
from penstock.cli.client import ask
from penstock.cli.context import CannotTell, Context, place_of
from penstock.cli.lent import with_lent
from penstock.cli.why_block import as_json as block_as_json
from penstock.cli.why_block import complete_block, explain, text
from penstock.cli.why_names import known
from penstock.cli.why_text import Kernel, Shown, as_json, lines
from penstock.core.asking import Answer, BadQuery, incoming, outgoing, reply
from penstock.core.connection import as_sent
from penstock.core.language.reading import near, shown
from penstock.core.parse import parse
from penstock.core.policy import NetworkPeer, Policy, Sentence, WorkloadPeer
from penstock.core.wire import Message
from penstock.errors import PenstockError
from penstock.files import read_config, read_presets
from penstock.this_host import own_addresses

ASKED = 128
"""Connections of one question that the kernel is asked about."""

AGAIN = 1.0
"""Seconds until everything is asked once more when the kernel disagrees: the daemon tells ends to the second."""


@click.command()
@click.argument("workload", required=False, shell_complete=complete_workload)
@click.argument("what", nargs=-1, metavar="DEST:PORT[/udp] | DEST icmp | PORT[/udp]")
@click.option("--from", "source", metavar="SOURCE", help="From SOURCE to the workload's PORT.")
@click.option(
    "--policy",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Judge by this configuration directory, not by what is applied; needs no root.",
)
@click.option(
    "--block",
    metavar="ID",
    shell_complete=complete_block,
    help="About a block of the log: by the policy of then, and by that of now.  ID may be shortened.",
)
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object.")
@click.pass_context
def why(
    ctx: click.Context,
    workload: str | None,
    what: tuple[str, ...],
    source: str | None,
    directory: Path | None,
    block: str | None,
    as_json_: bool,
) -> None:
    """Say whether WORKLOAD may connect to DEST, or with --from whether SOURCE may connect to it.

    \b
    penstock why litellm 10.30.1.9:5432
    penstock why litellm [2001:db8::5]:53/udp
    penstock why litellm 10.30.1.9 icmp
    penstock why litellm registry.example.org:443
    penstock why litellm workload:vllm:8000
    penstock why litellm --from clients 8000
    penstock why --block 019abf5c8f2c00000a5eed5eed

    Exit status: 0 allowed, 1 denied, 2 cannot tell.  It follows the policy, unless the kernel disagrees.
    """
    run = (ctx.obj or Context()).run
    if block is not None:
        if workload or source or directory:
            raise click.UsageError("--block names all there is to ask: give it alone")
        ctx.exit(_explain(run, block, as_json_))
    if not workload or not what:
        raise click.UsageError("Missing argument 'WORKLOAD'." if not workload else "Missing argument 'WHAT'.")
    sentence = _question(what, source)
    found = _in_force(run, workload, sentence) if directory is None else _in(directory, workload, sentence)
    if found.kernel is Kernel.DISAGREES:  # a look-up or another policy may have come between the questions
        time.sleep(AGAIN)
        found = _in_force(run, workload, sentence)
    click.echo(json.dumps(as_json(found), indent=2) if as_json_ else "\n".join(lines(found)))
    ctx.exit(_status(found.answer, found.kernel))


def _in_force(run: Path, workload: str, sentence: Sentence) -> Shown:
    """By what is applied and lent, by what is known of names, and by the kernel."""
    now = datetime.now(UTC)
    policy = with_lent(applied_policy(run), run, now)
    _check_names(policy, workload, sentence)
    names = known(run, workload, sentence, now)
    learned = names.learned if names else None
    answer = _given(reply(policy, now, workload, sentence, learned, own_addresses()), sentence)
    kernel = _kernel(run, answer)
    return Shown(policy, policy.workloads[workload], sentence, answer, kernel, place_of(run, "config"), names)


def _in(directory: Path, workload: str, sentence: Sentence) -> Shown:
    """By the files there alone."""
    policy = _policy_in(directory)
    _check_names(policy, workload, sentence)
    answer = _given(reply(policy, datetime.now(UTC), workload, sentence), sentence)
    return Shown(policy, policy.workloads[workload], sentence, answer, Kernel.UNKNOWN, directory)


def _given(answer: Answer | None, sentence: Sentence) -> Answer:
    if answer is None:
        raise CannotTell(f"`{shown(sentence.text)}` names no address")
    return answer


def _explain(run: Path, block: str, as_json_: bool) -> int:
    found = explain(run, block)
    if as_json_:
        click.echo(json.dumps(block_as_json(found, json.loads(found.record.block.as_json())), indent=2))
    else:
        click.echo("\n".join(text(found)))
    return found.status


def _status(answer: Answer, kernel: Kernel) -> int:
    if kernel is Kernel.DISAGREES or answer.allow is None:
        return 2
    return 0 if answer.allow else 1


def _question(what: Sequence[str], source: str | None) -> Sentence:
    try:
        return outgoing(what) if source is None else incoming(source, what)
    except BadQuery as error:
        raise CannotTell(str(error), hint=error.hint) from error


def _policy_in(directory: Path) -> Policy:
    try:
        parsed = parse(read_config(directory), read_presets(directory))
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e
    if parsed.policy is None:
        raise CannotTell("has mistakes", where=str(directory), hint=f"see: penstock check {directory}")
    return parsed.policy


def _check_names(policy: Policy, workload: str, sentence: Sentence) -> None:
    if workload not in policy.workloads:
        raise no_such(workload, policy)
    match sentence.peer:
        case WorkloadPeer(name) if name not in policy.workloads:
            raise no_such(name, policy)
        case NetworkPeer(name) if name not in policy.networks:
            raise CannotTell(f"the policy has no network `{shown(name)}`", hint=near(name, policy.networks))
        case _:
            pass


def _kernel(run: Path, answer: Answer) -> Kernel:
    """Whether the kernel's sets and chains hold what the rules open, and nothing else of what was asked about.

    Unknown where it can be asked nothing: of a name without addresses.
    """
    opened = [one.by_address or one.by_name for one in answer.in_sets]
    opened += [one.opened for one in answer.in_chains]
    if not opened or (answer.allow and not any(opened)):
        return Kernel.UNKNOWN
    for one in answer.in_sets[:ASKED]:
        connection, remote = one.connection, as_sent(one.connection).remote
        if remote is None:
            return Kernel.UNKNOWN
        question = {
            "workload": connection.workload,
            "direction": connection.direction.value,
            "address": str(remote),
            "protocol": connection.protocol,
            "port": connection.port or 0,
            "here": int(connection.here),
        }
        try:
            said = ask(run, Message("holds", question))
        except PenstockError:
            return Kernel.UNKNOWN
        if said["holds"] is None:
            return Kernel.UNKNOWN
        wanted = {"holds": one.by_address, "learned": one.by_name}
        if any(said[key] is not held for key, held in wanted.items() if held is not None):
            return Kernel.DISAGREES
    found = _chains(run, answer)
    return Kernel.UNKNOWN if found is Kernel.AGREES and len(answer.in_sets) > ASKED else found


def _chains(run: Path, answer: Answer) -> Kernel:
    questions = {(one.connection.workload, one.connection.direction, one.far): one for one in answer.in_chains}
    for one in list(questions.values())[:ASKED]:
        connection = one.connection
        question = {
            "workload": connection.workload,
            "direction": connection.direction.value,
            "far": one.far,
            "protocol": connection.protocol,
            "port": connection.port or 0,
        }
        try:
            rules = ask(run, Message("opens", question))["rules"]
        except PenstockError:
            return Kernel.UNKNOWN
        if rules is None:
            return Kernel.UNKNOWN
        if bool(rules) is not one.opened:
            return Kernel.DISAGREES
    return Kernel.AGREES if len(questions) <= ASKED else Kernel.UNKNOWN
