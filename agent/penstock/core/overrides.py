"""A mode that is lent: from the words of `penstock observe` and `penstock lock` to a Grant, or why not.

It is a grant without rules: an owner, a reason and an end, on disk before it is in the kernel.  That a workload is
observed ends in the kernel by itself.  A lock is lifted by the daemon: without one the workload stays locked.
"""

from __future__ import annotations

from penstock.core.grant_request import BadGrant, Request, owner_of, reason_of, room_for, until_of, workload_of
from penstock.core.grants import Grant
from penstock.core.policy import Mode
from penstock.core.text import time_text

LONGEST_OBSERVE = 86_400
"""Seconds: who is observed for longer is observed by his file."""

LENT = (Mode.OBSERVE, Mode.LOCK)


def override(request: Request, name: str) -> tuple[Grant, list[str]]:
    """The grant, with the id `name`, and what one should know about it.  BadGrant when it is not to be."""
    said = request.said
    workload = workload_of(request.policy, said["workload"])
    try:
        mode = Mode(said["mode"])
    except ValueError:
        mode = Mode.ENFORCE
    if mode not in LENT:
        raise BadGrant("the modes that can be lent are observe and lock", "for good: `mode:` in its file")
    reason, until = reason_of(said["reason"]), until_of(request)
    left = (until - request.now).total_seconds()
    if mode is Mode.OBSERVE and left > LONGEST_OBSERVE + 1:
        raise BadGrant("nothing is observed for more than 24 hours so", "write `mode: observe` into its file")
    notes = _against(request, workload.mode, mode, workload.name)
    room_for(request, workload)
    owner = owner_of(request.login, said["user"])
    ends = request.uptime + left
    made = Grant(name, workload.name, f"mode {mode}", (), until, ends, owner, reason, request.now, mode=mode)
    return made, notes


def _against(request: Request, own: Mode, mode: Mode, name: str) -> list[str]:
    """Whether it would change anything, and all that somebody wants.  Returns what to say about it."""
    if own is mode:
        words = {Mode.OBSERVE: "is observed", Mode.LOCK: "is locked"}[mode]
        raise BadGrant(f"{name} {words} already, by its file")
    if own is Mode.LOCK:
        raise BadGrant(f"{name} is locked by its file", "somebody decided that: change `mode:` there, and apply")
    notes = []
    for other in request.lent:
        if other.workload != name or other.mode is None:
            continue
        until = time_text(other.until)
        if other.mode is mode:
            hint = f"end it first: penstock revoke {other.id}"
            raise BadGrant(f"{other.id} does that until {until} already", hint)
        if other.mode is Mode.LOCK:
            raise BadGrant(f"{name} is locked until {until}", f"end that first: penstock revoke {other.id}")
        notes.append(f"{other.id} has it observed until {until}; the lock wins, and that goes on when it ends")
    return notes
