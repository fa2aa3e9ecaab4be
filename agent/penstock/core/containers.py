"""Containers as a host sees them: the programs that have one made, and the names of their cgroups.

Both go by names, which a program chooses: this finds what was forgotten, and no attacker.
"""

from __future__ import annotations

import re

CLIENTS = frozenset(
    """
    docker docker-compose docker-run podman podman-compose podman-remote nerdctl ctr crictl kubectl lxc lxc-start
    lxc-attach incus machinectl systemd-nspawn apptainer singularity
    """.split()  # noqa: SIM905 (a table is easier to read and to sort)
)
"""What these start lives where an engine puts it."""
ENGINES = frozenset({"podman", "conmon", "docker", "docker-compose", "nerdctl"})
"""Those that stay as long as the container does, and whose containers `is_container` knows."""
_CONTAINER = re.compile(r"(?:libpod(?:-payload)?|docker|nerdctl)-[0-9a-f]{12,64}(?:\.scope)?|[0-9a-f]{64}")


def is_container(cgroup: str) -> bool:
    """Whether that is the name of a container's cgroup, as podman, Docker and nerdctl choose it."""
    return _CONTAINER.fullmatch(cgroup) is not None
