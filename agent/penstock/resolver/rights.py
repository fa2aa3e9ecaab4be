"""Giving up all rights: the process that reads hostile packets is nobody, and can become nobody else.

It was started as root, in its cgroup (`penstock.kernel.resolver_process`).  To be called when everything is
imported, because the files of a checkout may be for root only, and before anything is read from anybody.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from pathlib import Path

from penstock.errors import PenstockError

ID = 61_100
"""User and group.  systemd's table of ids leaves 60706 to 61183 to nobody (systemd.io/UIDS-GIDS), and useradd(8)
gives out up to 60000: it is no one else's, and needs no entry in /etc/passwd.
"""

MAX_FILES = 16_384
"""Descriptors: a socket for each question under way, and those of clients over TCP."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITIES = struct.pack("=IiIIIIII", 0x20080522, 0, 0, 0, 0, 0, 0, 0)  # header of version 3, then none at all
_libc = ctypes.CDLL(None, use_errno=True)


def give_up() -> None:
    """Keep no right, no group and no way back; be told when the daemon dies.  PenstockError when any of it fails.

    Started by somebody else than root, the process stays who it is.
    """
    parent = os.getppid()
    was_root = os.geteuid() == 0
    try:
        _limit()
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        if was_root:
            os.setgroups([])
            os.setresgid(ID, ID, ID)
            os.setresuid(ID, ID, ID)
        _drop_capabilities()
        _prctl(_PR_SET_DUMPABLE, 0)  # nobody of the same id, if there is one after all, looks into it
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # last: a change of user takes it back
    except OSError as e:
        raise PenstockError(f"the resolver cannot give up its rights: {e.strerror or e}") from e
    if os.getppid() != parent:  # it died before we asked to be told
        raise SystemExit(0)
    _check(ID if was_root else None)


def _limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if most == resource.RLIM_INFINITY else min(most, MAX_FILES)
    for kind, limit in (
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),  # no processes, no threads
    ):
        resource.setrlimit(kind, (limit, limit))


def _drop_capabilities() -> None:
    """Also those that are inheritable, which a change of user leaves (capset(2))."""
    header, none = _CAPABILITIES[:8], _CAPABILITIES[8:]
    if _libc.capset(ctypes.create_string_buffer(header, 8), ctypes.create_string_buffer(none, 24)) != 0:
        _raise()


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) != 0:
        _raise()


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _check(wanted: int | None) -> None:
    """Read back from the kernel who this process is now."""
    said = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        said[key] = rest.split()
    expected = {key: ["0" * 16] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} | {"NoNewPrivs": ["1"]}
    if wanted is not None:
        expected |= {"Uid": [str(wanted)] * 4, "Gid": [str(wanted)] * 4, "Groups": []}
    for key, value in expected.items():
        if said.get(key) != value:
            raise PenstockError(f"the resolver kept rights: {key} is {' '.join(said.get(key, []))}")
