"""All of a host that an installation may change, as text: to compare before and after."""

from __future__ import annotations

import difflib
import re

from hosts.host import Host

VOLATILE = {
    r"/(var/log|run/log)/journal(/|$)": "the journal tells what happened",
    r"/run/systemd/journal/streams/": "one for each process that writes to the journal",
    r"/run/systemd/units/": "one for each unit that runs, named by each start of it",
    r"/run/systemd/propagate/": "of a service with a mount namespace of its own, until systemd forgets it",
    r"/run/systemd/(inaccessible|incoming)/": "the same",
    r"/run/(systemd/(sessions|users|seats)|user|utmp|lock)(/|$)": "who is logged in, and what is locked",
    r"/var/lib/systemd/(timers|random-seed|catalog)": "when a timer ran, what was drawn",
    r"/etc/(ld\.so\.cache|\.pwd\.lock)$": "rewritten by the distribution's packages",
    r"/__pycache__(/|$)": "Python's own, of the distribution's library",
}
"""What may differ, as patterns of paths, each with its reason."""

FILES = r"""
find /etc /usr \( -type d -printf 'd %m %u:%g %p\n' \) -o -printf '%y %m %u:%g %s %T@ %p -> %l\n'
find /var/lib /var/log /var/spool /run /opt /root -printf '%y %m %u:%g %p -> %l\n'
"""
PARTS = {
    "rules": "nft -s list ruleset",
    "cgroups": "find /sys/fs/cgroup -type d -not -path '*/test.scope*'",
    "units": "systemctl list-unit-files --no-legend --full | sed 's/  */ /g'",
    "loaded": "systemctl list-units --all --no-legend --plain --full --type=service,slice,path,timer,socket,target"
    " | awk '{print $1, $2, $3, $4}'",
    "files": FILES,
}


def settle(host: Host) -> None:
    """End what a release starts at boot and ends by itself a while later."""
    host.run(["systemctl", "stop", "netavark-dhcp-proxy.service", "podman.service"], check=False)


def taken(host: Host) -> dict[str, list[str]]:
    """Each part as sorted lines (the ruleset in its order), without what is volatile."""
    found = {name: host.sh(script).splitlines() for name, script in PARTS.items()}
    volatile = re.compile("|".join(VOLATILE))
    found["files"] = [line for line in found["files"] if not volatile.search(line.partition(" -> ")[0])]
    return {name: lines if name == "rules" else sorted(lines) for name, lines in found.items()}


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What was added and what is missing, a line each."""
    found = []
    for name, lines in before.items():
        changed = difflib.unified_diff(lines, after[name], lineterm="", n=0)
        found += [f"{name}: {line}" for line in changed if line[0] in "+-" and line[:3] not in ("+++", "---")]
    return found
