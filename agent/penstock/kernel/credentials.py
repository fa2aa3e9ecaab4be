"""Who a program runs as, and what it may do: user, groups and capabilities(7) of this process.

After `become` nothing of what was given up can come back, not by exec of a setuid program either: the bounding set
lacks it.  `check` reads that back from the kernel.
"""

from __future__ import annotations

import ctypes
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import PenstockError

GIVEN_UP = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
"""With these a process changes the firewall, sends packets past it, or leaves its namespaces."""

_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@dataclass(frozen=True, slots=True)
class User:
    """A user of this host; `groups` are all of his groups, the first one too."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def user(text: str) -> User:
    """The user of that name or number.  PenstockError when there is none.

    To be called before the process is governed: the answer may come over the network (nsswitch.conf(5)).
    """
    try:
        entry = pwd.getpwuid(int(text)) if text.isascii() and text.isdecimal() else pwd.getpwnam(text)
    except (KeyError, OverflowError, ValueError) as e:
        raise PenstockError(f"there is no user {text!r}", hint="see: getent passwd") from e
    groups = tuple(sorted({*os.getgrouplist(entry.pw_name, entry.pw_gid), entry.pw_gid}))
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell)


def become(who: User) -> None:
    """Give up the capabilities, for ever, and turn into that user.  OSError when the kernel refuses."""
    for number in GIVEN_UP.values():
        _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl PR_CAPBSET_DROP")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl PR_CAP_AMBIENT")
    os.setgroups(who.groups)
    os.setresgid(who.gid, who.gid, who.gid)
    _drop_from_own_sets()  # before the change of user: that clears the rest, but not what is inheritable
    os.setresuid(who.uid, who.uid, who.uid)


def check(who: User) -> None:
    """Read back who this process is.  PenstockError, naming the difference, when it is not what `become` made."""
    said = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, rest = line.partition(":")
        said[key] = rest.split()
    wanted = {"Uid": [str(who.uid)] * 4, "Gid": [str(who.gid)] * 4, "Groups": [str(gid) for gid in who.groups]}
    for key, value in wanted.items():
        if said.get(key) != value:
            raise PenstockError(f"the change of user failed: {key} is {' '.join(said.get(key, []))}")
    for key in _SETS:
        kept = int(said[key][0], 16)
        if any(kept >> number & 1 for number in GIVEN_UP.values()):
            raise PenstockError(f"giving up capabilities failed: {key} is {kept:x}")
        if who.uid != 0 and kept and key in ("CapPrm", "CapEff", "CapAmb"):
            raise PenstockError(f"the change of user left capabilities: {key} is {kept:x}")


def _drop_from_own_sets() -> None:
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    for number in GIVEN_UP.values():
        word, mask = data[number // 32], ~(1 << number % 32)
        word.effective &= mask
        word.permitted &= mask
        word.inheritable &= mask
    _check(_libc.capset(ctypes.byref(header), data), "capset")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
