"""The floor: the rules in force as a plain nft script, for a boot or a reload without the daemon.

    # penstock floor 1 sha256:HEX     of every byte after this line: tail -n +2 FILE | sha256sum
    # policy HASH
    # cgroup PATH                     one for each cgroup that must exist, below the root of the cgroup tree
    ...                               the script; one transaction that replaces all rules of our table

nft can be told how long an element lasts, not until when: what a rule allows for a while is left out, and closed
until the daemon is back.  Left out too are workloads bound in place: there is nothing to bind before they start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

from penstock.core import cgroup_maps
from penstock.core.render_nft import headed, replacement
from penstock.core.ruleset import TABLE, AddressSet, Ruleset
from penstock.core.slices import SLICE, slice_of

NO_POLICY = "none"
"""Stands for the hash in the floor that is shipped, which denies every workload everything."""

_NO_MATTER = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = re.compile(rb"# penstock floor 1 sha256:([0-9a-f]{64})")
_SAID = re.compile(rb"# (policy|cgroup) ([^\n]*)\n")

COMMENT = """\
# Written by penstock, not by hand: a changed file is not loaded.
# It replaces all rules of table inet penstock and touches no other.  A rule with an end is left out.
"""


@dataclass(frozen=True, slots=True)
class Header:
    """What a floor says of itself: the hash of its policy, and which cgroups must exist (paths below the root)."""

    policy: str
    cgroups: tuple[str, ...]


def text(ruleset: Ruleset, workloads: Sequence[str], policy_hash: str, below: str = "") -> bytes:
    """The file for `ruleset` with the slices of `workloads` bound; the same input gives the same bytes.

    `ruleset` was compiled without levels.  `below` is where penstock.slice is, if not in the root of the tree.
    """
    prefix = f"{below}/" if below else ""
    bound = [(prefix + slice_of(name), cgroup_maps.bindings(name)) for name in sorted(workloads)]
    lasting = replace(ruleset, sets=tuple(_lasting(address_set) for address_set in ruleset.sets))
    parts = [
        f"# policy {policy_hash}\n",
        *(f"# cgroup {path}\n" for path in (prefix + SLICE, *(path for path, _ in bound))),
        COMMENT,
        headed(replacement(lasting, _NO_MATTER)),
        "\n# cgroups\n",
        *(
            f'add element inet {TABLE} {name} {{ "{path}" : {verb} {chain} }}\n'
            for path, verdicts in bound
            for name, verb, chain in verdicts
        ),
    ]
    body = "".join(parts).encode()
    return b"# penstock floor 1 sha256:%s\n" % sha256(body).hexdigest().encode() + body


def _lasting(address_set: AddressSet) -> AddressSet:
    """The set without the elements that will run out."""
    lasting = {e: rule for e, rule in address_set.elements.items() if e not in address_set.expires}
    return AddressSet(address_set.name, address_set.family, lasting)


def verify(data: bytes) -> bool:
    """Whether `data` is a whole floor of this format, as it was written."""
    first, newline, body = data.partition(b"\n")
    match = _FIRST.fullmatch(first)
    return bool(newline) and match is not None and match[1].decode() == sha256(body).hexdigest()


def parse_header(data: bytes) -> Header | None:
    """What the floor says of itself; None for a file that is damaged, or no floor."""
    if not verify(data):
        return None
    policy, cgroups = "", []
    for word, value in _said(data):
        if word == "policy":
            policy = value
        else:
            cgroups.append(value)
    return Header(policy, tuple(cgroups))


def _said(data: bytes) -> Iterator[tuple[str, str]]:
    """What stands between the first line and the first of another kind."""
    place = data.index(b"\n") + 1
    while found := _SAID.match(data, place):
        place = found.end()
        yield found[1].decode(), found[2].decode("utf-8", "replace")
