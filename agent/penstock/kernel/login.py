"""Who logged in and became root: the login uid that the kernel keeps of a process (pam_loginuid(8)).

It is set at the login and inherited by all that comes of it, through sudo and su.  Only a process with
CAP_AUDIT_CONTROL can set it again, and where the kernel was told `loginuid_immutable` (auditctl(8)) nobody can.
So it says more than SUDO_USER, which is text of the environment; and root can lie in both.
"""

from __future__ import annotations

from pathlib import Path

from penstock.core.text import printable

UNSET = 0xFFFFFFFF
LONGEST = 64
MAX_BYTES = 1 << 20
PASSWD = Path("/etc/passwd")


def login_of(pid: int, passwd: Path = PASSWD) -> str:
    """The name of whoever logged in, `uid N` when this host's own file has no name for it; "" when nobody did."""
    try:
        number = int(Path(f"/proc/{pid}/loginuid").read_text())
    except (OSError, ValueError):
        return ""
    return "" if number == UNSET else name_of(number, passwd)


def name_of(uid: int, passwd: Path = PASSWD) -> str:
    """By the file alone: other sources of names (nsswitch.conf(5)) may be far away, and the daemon cannot wait."""
    try:
        with passwd.open("rb") as file:
            lines = file.read(MAX_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(uid) and fields[0]:
            return printable(fields[0], LONGEST)
    return f"uid {uid}"
