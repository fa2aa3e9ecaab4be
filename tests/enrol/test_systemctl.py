"""The door to systemctl, with a small program in its place; tests/hosts has the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.enrol import systemctl
from penstock.errors import PenstockError


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty script that stands for systemctl."""
    path = tmp_path / "systemctl"
    monkeypatch.setattr(systemctl, "PROGRAM", str(path))
    return path


def write(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_it_prints_and_what_it_is_given(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY")
    monkeypatch.setenv("LD_PRELOAD_OF_OURS", "/x")
    write(program, 'echo "$LC_ALL $LD_PRELOAD_OF_OURS$SYSTEMD_COLORS"; pwd; printf "%s|" "$@"; read x || echo no')
    assert systemctl.run("a b", "--", "$c") == "C.UTF-8 0\n/\na b|--|$c|no\n"


def test_a_failure_says_the_command_and_its_first_words(program: Path) -> None:
    write(program, "printf 'Unit \\033[1mx not found.\\nmore\\n' >&2; exit 5")
    with pytest.raises(PenstockError) as caught:
        systemctl.restart("x.service")
    assert str(caught.value) == f"{program} restart -- x.service: Unit \\x1b[1mx not found."
    write(program, "exit 5")
    with pytest.raises(PenstockError, match="ended with status 5"):
        systemctl.daemon_reload()


def test_it_does_not_wait_for_ever(program: Path) -> None:
    write(program, "exec sleep 30")
    with pytest.raises(PenstockError, match=r"does not end within 0\.1 s"):
        systemctl.run("x", timeout=0.1)


def test_no_systemctl(program: Path) -> None:
    with pytest.raises(PenstockError, match="cannot be run: No such file"):
        systemctl.run("x")
    with pytest.raises(PenstockError, match="cannot be run: embedded null byte"):
        systemctl.run("x\0")


def test_show(program: Path) -> None:
    write(program, 'echo "$*" >&2; printf "A=1=2\\nExecStart=a\\nOther=x\\nExecStart=b\\n\\nnonsense\\n"')
    assert systemctl.show("x.service", ("A", "ExecStart", "B")) == {"A": "1=2", "ExecStart": "a\nb", "B": ""}
    write(program, 'echo "A=$*"')
    assert systemctl.show("x", ("A",))["A"] == "show --property=A -- x"


def test_names(program: Path) -> None:
    write(program, 'test $1 = list-units && echo "b.service loaded active" || printf "a@.service static -\\n\\n"')
    assert systemctl.names("*") == ["a@.service", "b.service"]


def test_no_names(program: Path) -> None:
    """Some releases end with 1 when no file matches."""
    write(program, "test $1 = list-units")
    assert systemctl.names("*") == []
    write(program, "test $1 = list-units || { echo no >&2; exit 1; }")
    with pytest.raises(PenstockError, match=": no"):
        systemctl.names("*")


def test_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemctl, "BOOTED", tmp_path)
    assert systemctl.available()
    monkeypatch.setattr(systemctl, "BOOTED", tmp_path / "none")
    assert not systemctl.available()
