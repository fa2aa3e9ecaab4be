"""`penstock why --block ID`: a record of the log, by the policy of then, and by the one of now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from penstock.cli.applied import applied_path, applied_policy, kept_paths, policy_of, read_applied
from penstock.cli.block_log import BlockReader, Record, Wanted
from penstock.cli.block_source import Source, answer, log_directory
from penstock.cli.block_text import Look, Row, Widths, lines
from penstock.cli.context import DEFAULT_RUN, CannotTell, place_of
from penstock.cli.format import colours, local, width, wrapped
from penstock.cli.lent import with_lent
from penstock.cli.why_text import Kernel, Shown
from penstock.cli.why_text import as_json as shown_as_json
from penstock.cli.why_text import lines as shown_lines
from penstock.core import state
from penstock.core.asking import looked_up, reply
from penstock.core.blocks import Block
from penstock.core.language.reading import near, shown
from penstock.core.names import BadName
from penstock.core.policy import AddressPeer, Direction, Policy, Sentence
from penstock.errors import PenstockError

_SHOWN = 4
_NEAR = 1000
"""Of the newest blocks one is offered whose id is like the one that is not there."""

_COMPLETED = 50


@dataclass(frozen=True, slots=True)
class Explained:
    """A record; `then` and `now` are None where the rules cannot be asked, `trouble` says why of then."""

    record: Record
    then: Shown | None
    now: Shown | None
    applied: float | None
    trouble: str
    rule_read: str = ""  # what the line of the rule in `then` said

    @property
    def status(self) -> int:
        """As `why` ends: 0 allowed, 1 denied, 2 cannot tell; by the rules of then."""
        if self.then is None or self.then.answer.allow is None:
            return 2
        return 0 if self.then.answer.allow else 1


def explain(run: Path, id_: str) -> Explained:
    """The record whose id begins with `id_`.  CannotTell when it is not one."""
    record = _find(log_directory(run), id_)
    block = record.block
    then, applied, read, trouble = None, None, "", _unjudged(block)
    if trouble:
        return Explained(record, None, None, None, trouble)
    try:
        found = _policy_then(run, block)
        applied = found.at
        policy = policy_of(found, applied_path(run))
        then = _judge(policy, block, datetime.fromtimestamp(block.first, UTC), place_of(run, "config"))
        trouble = "" if then else f"the policy of then has no workload {block.workload}"
        read = _rule_line(found, then) if then else ""
    except CannotTell as e:
        trouble = str(e)
    return Explained(record, then, _now(run, block), applied, trouble, read)


def _find(directory: Path, id_: str) -> Record:
    def ask(source: Source) -> tuple[list[Record], list[str]]:
        found = source.with_id(id_, _SHOWN + 1)
        ids = [] if found else [record.block.id for record in source.records(Wanted(), _NEAR)]
        return found, ids

    try:
        reader = BlockReader(directory)
    except PenstockError as e:
        raise CannotTell(e.message, where=e.where, hint=e.hint) from e
    try:
        found, ids = answer(directory, reader, ask)
    finally:
        reader.close()
    if len(found) > 1 and not (whole := [one for one in found if one.block.id == id_]):
        several = ", ".join(shown(one.block.id) for one in found[:_SHOWN])
        raise CannotTell(
            f"several blocks begin with `{shown(id_)}`", hint=f"{several}{' ...' * (len(found) > _SHOWN)}"
        )
    if not found:
        hint = near(id_, ids) or "`penstock blocks --ids` shows ids"
        raise CannotTell(f"the log has no block `{shown(id_)}`", where=str(directory), hint=hint)
    return found[0] if len(found) == 1 else whole[0]


def _policy_then(run: Path, block: Block) -> state.Applied:
    """The saved policy that the record names.  CannotTell when it is not kept."""
    present = applied_path(run)
    paths = [present.with_name(state.POLICIES) / f"{block.policy}.json"] if _is_name(block.policy) else []
    for path in (*paths, *kept_paths(run), present.with_name(state.STAGED)):
        try:
            found = read_applied(path)
        except CannotTell as e:
            if isinstance(e.__cause__, PermissionError):
                raise
            continue  # damaged: another copy may be whole
        if found is not None and found.hash == block.policy:
            return found
    raise CannotTell(f"the policy of then, {shown(str(block.policy))}, is not kept any more")


def _is_name(policy: str | None) -> bool:
    return policy is not None and policy.isalnum()


def _unjudged(block: Block) -> str:
    """Why no rule can be about such a block; empty when one can."""
    try:
        _sentence(Policy(), block, datetime.fromtimestamp(block.first, UTC))
    except CannotTell as e:
        return str(e)
    return ""


def _sentence(policy: Policy, block: Block, when: datetime) -> Sentence:
    """The question that the block answers, under `policy`.  CannotTell when no rule can be about it."""
    if block.is_lookup and block.name:
        try:
            return looked_up(policy, when, block.workload, block.name)
        except BadName as e:
            raise CannotTell(f"no rule can have such a name: {e}") from e
    if block.address is None:
        raise CannotTell("it is about no single address or name, and rules are about these")
    try:
        far = AddressPeer(ip_address(block.address))
    except ValueError as e:
        raise CannotTell(f"`{shown(block.address)}` is no address") from e
    direction, protocol, port = Direction(block.direction), block.protocol, block.port
    if protocol in ("icmp", "icmpv6") and direction is Direction.OUT:
        return Sentence(f"{block.address} icmp", direction, far, "icmp", None, allow=True)
    if port is None or protocol not in ("tcp", "udp"):
        what = "packets of several protocols" if protocol is None else f"protocol {shown(protocol)}"
        raise CannotTell(f"no rule can be about {what}")
    host = f"[{block.address}]" if ":" in block.address else block.address
    into = direction is Direction.IN
    text = f"from {block.address} {port}/{protocol}" if into else f"{host}:{port}/{protocol}"
    return Sentence(text, direction, far, protocol, port, allow=True)


def _judge(policy: Policy, block: Block, when: datetime, config: Path | None) -> Shown | None:
    if block.workload not in policy.workloads:
        return None
    sentence = _sentence(policy, block, when)
    said = reply(policy, when, block.workload, sentence)
    if said is None:
        return None
    return Shown(policy, policy.workloads[block.workload], sentence, said, Kernel.UNKNOWN, config)


def _rule_line(applied: state.Applied, then: Shown) -> str:
    """The line at which the rule that allows, or came nearest, stood then."""
    verdict = then.answer.verdict
    wanted = verdict.rule or verdict.nearest
    for rule in then.workload.rules:
        if rule.id == wanted:
            found = applied.files.get(rule.place.file, b"").decode("utf-8", "replace").splitlines()
            return found[rule.place.line - 1].strip() if 0 < rule.place.line <= len(found) else ""
    return ""


def _now(run: Path, block: Block) -> Shown | None:
    now = datetime.now(UTC)
    try:
        policy = with_lent(applied_policy(run), run, now)
    except CannotTell:
        return None
    return _judge(policy, block, now, place_of(run, "config"))


def text(found: Explained) -> list[str]:
    """For people."""
    block = found.record.block
    look = Look("", colours(), width())
    row = Row(block, block.count + block.unlogged, block.unlogged)
    first, last = (local(datetime.fromtimestamp(when, UTC)) for when in (block.first, block.last))
    result = [f"block {shown(block.id)}, {first} to {last}", *lines(row, Widths(), look, hint=False)]
    policy = f"the policy of then, {shown(str(block.policy))}"
    if found.applied:
        policy += f", applied {local(datetime.fromtimestamp(found.applied, UTC))}"
    result += ["", f"by {policy}:" if found.then else f"then: {found.trouble}"]
    if found.then:
        result += _indented(found.then)
        if found.rule_read:
            result.append(f"    that line was then: {shown(found.rule_read)}")
        if found.then.answer.allow:
            result += wrapped("its rules allow it; the record above says what else stood against it", 4)
    if found.now:
        same = found.then is not None and found.now.policy.hash == found.then.policy.hash
        result += [""]
        if same and found.now.answer == getattr(found.then, "answer", None):
            result += ["now: the same policy is in force"]
        else:
            result += [f"by the policy of now, {found.now.policy.hash}:", *_indented(found.now)]
    return result


def _indented(found: Shown) -> list[str]:
    return [f"  {line}" for line in shown_lines(found) if not line.startswith("  kernel: ")]


def as_json(found: Explained, block: Mapping[str, Any]) -> dict[str, Any]:
    """For programs; `block` is the record as the log has it."""
    return {
        "v": 1,
        "block": dict(block),
        "kept": found.applied is not None,
        "applied": None if found.applied is None else _rfc3339(found.applied),
        "rule_read": found.rule_read or None,
        "then": shown_as_json(found.then) if found.then else None,
        "now": shown_as_json(found.now) if found.now else None,
    }


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def complete_block(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the newest blocks for the shell, when the log may be read."""
    run = Path(ctx.find_root().params.get("run") or DEFAULT_RUN)
    directory = log_directory(run)
    try:
        reader = BlockReader(directory)
    except PenstockError:
        return []
    with_reader = [record.block.id for record in _newest(reader)]
    reader.close()
    return [id_ for id_ in with_reader if id_.startswith(incomplete) and id_.isalnum()]


def _newest(reader: BlockReader) -> list[Record]:
    found = []
    for record in reader.newest_first(Wanted()):
        found.append(record)
        if len(found) == _COMPLETED:
            break
    return found
