"""Whose login a process came of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.kernel import login


def test_a_name_is_that_of_the_file_or_a_number(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_bytes(b"root:x:0:0::/root:/bin/sh\nbroken\n:x:1000:\nanna\x1b\xff:x:1000:1000::/:/bin/sh\n")
    assert login.name_of(0, passwd) == "root"
    assert login.name_of(1000, passwd) == "anna\\x1b\ufffd"
    assert login.name_of(1001, passwd) == "uid 1001"
    assert login.name_of(0, tmp_path / "missing") == "uid 0"


@pytest.mark.root
def test_the_kernel_knows_who_logged_in(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text("anna:x:1234:1234::/:/bin/sh\n")
    ours, theirs = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            Path("/proc/self/loginuid").write_text("1234")
            os.write(ours[1], b"x")
            os.read(theirs[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ours[0], 1) == b"x"
        assert login.login_of(pid, passwd) == "anna"
    finally:
        os.write(theirs[1], b"x")
        os.waitpid(pid, 0)
        for descriptor in (*ours, *theirs):
            os.close(descriptor)
    assert login.login_of(pid, passwd) == ""


def test_without_a_login_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: str(login.UNSET))
    assert login.login_of(1) == ""
    monkeypatch.setattr(Path, "read_text", lambda self: "x")
    assert login.login_of(1) == ""
