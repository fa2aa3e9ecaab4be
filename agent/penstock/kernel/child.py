"""A child of the daemon that runs a few lines of ours between fork(2) and its end or exec."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def fork(work: Callable[[], object]) -> int:
    """Fork a child that does `work`, and ends, with status 1 if that raises.  Returns its pid.

    `work` may only do system calls: what other threads of ours were at when they stopped to exist is unknown.
    Signals are blocked in it.  The wake-up descriptor of the event loop is the parent's too: a signal to the child
    would be taken for one to the daemon.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(work)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _be_child(work: Callable[[], object]) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        work()
        status = 0
    finally:
        os._exit(status)
