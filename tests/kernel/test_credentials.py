"""Users as the host knows them; a check that fails where nothing was given up; `cli/test_run` has the rest."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.errors import PenstockError
from penstock.kernel import credentials
from penstock.kernel.credentials import User, become, check, user

ROOT = User("root", 0, 0, (0,), "/root", "/bin/sh")


def turn(who: User, checked: User | None = None) -> Callable[[], None]:
    """`become` one, then check for the other."""

    def work() -> None:
        become(who)
        check(checked or who)

    return work


def in_child(work: Callable[[], object]) -> str:
    """What `work` raises in a child that may ruin itself: "" when nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except (PenstockError, OSError) as e:
            os.write(writer, str(e).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.parametrize("text", ["nobody", str(pwd.getpwnam("nobody").pw_uid)])
def test_a_user_by_name_and_number(text: str) -> None:
    entry, found = pwd.getpwnam("nobody"), user(text)
    assert (found.name, found.uid, found.gid) == ("nobody", entry.pw_uid, entry.pw_gid)
    assert entry.pw_gid in found.groups
    assert (found.home, found.shell) == (entry.pw_dir, entry.pw_shell)


@pytest.mark.parametrize("text", ["", "no such", "4294967290", "9" * 40, "-1", "²", "a\0b"])
def test_no_such_user(text: str) -> None:
    with pytest.raises(PenstockError, match="there is no user"):
        user(text)


@pytest.mark.root
def test_become_and_check_agree() -> None:
    assert in_child(turn(ROOT)) == ""
    nobody = user("nobody")
    assert in_child(turn(nobody)) == ""


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"uid": 7}, "the change of user failed: Uid is 0 0 0 0"),
        ({"gid": 7}, "the change of user failed: Gid is 0 0 0 0"),
        ({"groups": (0, 7)}, "the change of user failed: Groups is 0"),
    ],
)
def test_check_finds_another_user(change: dict[str, Any], text: str) -> None:
    assert in_child(turn(ROOT, replace(ROOT, **change))) == text


@pytest.mark.root
def test_check_finds_capabilities_that_stayed(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = replace(ROOT, groups=tuple(os.getgroups()))
    assert in_child(lambda: check(groups)).startswith("giving up capabilities failed: CapPrm is ")
    monkeypatch.setattr(credentials, "_drop_from_own_sets", lambda: None)
    assert in_child(turn(ROOT)).startswith("giving up capabilities failed: CapPrm is ")


@pytest.mark.root
def test_a_caller_who_keeps_capabilities_across_a_change_of_user() -> None:
    """SECBIT_NO_SETUID_FIXUP, prctl(2): then setuid drops nothing."""
    nobody = user("nobody")

    def work() -> None:
        assert credentials._libc.prctl(28, 1 << 2, 0, 0, 0) == 0
        turn(nobody)()

    assert in_child(work).startswith("the change of user left capabilities: Cap")


@pytest.mark.root
def test_who_is_not_root_cannot_become_anybody() -> None:
    nobody = user("nobody")

    def work() -> None:
        os.setresuid(nobody.uid, nobody.uid, nobody.uid)
        become(ROOT)

    assert "prctl PR_CAPBSET_DROP: Operation not permitted" in in_child(work)
