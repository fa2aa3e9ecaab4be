"""Showing the same thing again and again, in a terminal and out of one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from penstock.cli import watching
from penstock.cli.watching import BELOW, CLEAR, HOME, REST_OF_LINE, repeat


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited after each look; somebody presses ctrl-c after the third."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=sleep))
    return waited


def counting() -> Callable[[], Sequence[str]]:
    number = 0

    def show() -> list[str]:
        nonlocal number
        number += 1
        return [f"look {number}", "more"]

    return show


def test_elsewhere_one_after_the_other(looks: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    repeat(counting(), 2.5, "penstock status")
    assert capsys.readouterr().out == "look 1\nmore\nlook 2\nmore\nlook 3\nmore\n"
    assert looks == [2.5] * 3


def test_a_terminal_is_drawn_anew(
    looks: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "on_terminal", lambda: True)
    repeat(counting(), 1.0, "penstock status")
    each = [f"{HOME}look {n}{REST_OF_LINE}\nmore{REST_OF_LINE}\n{BELOW}" for n in (1, 2, 3)]
    assert capsys.readouterr().out == CLEAR + "".join(each) + "\n"


@pytest.mark.parametrize(("lines", "last"), [(9, "line 8"), (10, "... 2 more lines: penstock status")])
def test_what_does_not_fit_is_counted(lines: int, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "10")
    drawn = watching._screen([f"line {n}" for n in range(lines)], "penstock status")
    shown = drawn.removeprefix(HOME).removesuffix(BELOW).replace(REST_OF_LINE, "").splitlines()
    assert len(shown) == 9, "the last line of the terminal stays free, or it would scroll"
    assert shown[-1] == last


def test_ctrl_c_in_the_middle_of_a_look_ends_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    def show() -> list[str]:
        raise KeyboardInterrupt

    repeat(show, 1.0, "penstock status")
    assert capsys.readouterr().out == ""


def test_in_a_real_terminal() -> None:
    """ctrl-c is typed into it: a quiet end, and nothing of a traceback."""
    program = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    program += "from penstock.cli.watching import repeat; repeat(lambda: ['hello'], 30, 'x'); print('ended')"
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", program]
    # Of its session standard input becomes the terminal, whose ctrl-c then counts.
    with subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    ) as child:
        os.close(slave)
        seen = _until(master, b"hello")
        os.write(master, b"\x03")
        seen += _until(master, b"ended")
    assert child.returncode == 0
    os.close(master)
    assert b"Traceback" not in seen


def _until(terminal: int, text: bytes) -> bytes:
    seen, deadline = b"", time.monotonic() + 20
    while text not in seen and time.monotonic() < deadline:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
    assert text in seen, seen
    return seen
