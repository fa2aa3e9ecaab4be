"""Asking the daemon, and what is said when none answers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cli.fake_daemon import FakeDaemon
from penstock.cli import client
from penstock.cli.client import ask
from penstock.cli.context import CannotTell
from penstock.core.wire import Message
from penstock.errors import NoDaemon, PenstockError

READY = Message("ready", {"workload": "w"})


@pytest.fixture
def fake(tmp_path: Path) -> FakeDaemon:
    return FakeDaemon(tmp_path, {"ready": {"ready": True, "reason": ""}, "apply": ("it is\x1b late", "go home")})


def test_question_and_answer(fake: FakeDaemon) -> None:
    with fake:
        assert ask(fake.run, READY) == {"ready": True, "reason": ""}
    assert fake.requests == [READY]


def test_no_is_an_error_in_the_daemons_words(fake: FakeDaemon) -> None:
    with fake, pytest.raises(PenstockError, match=r"^it is\\x1b late; go home$") as caught:
        ask(fake.run, Message("apply", {"confirm": 0}))
    assert type(caught.value) is PenstockError


def test_nobody_there(fake: FakeDaemon) -> None:
    with pytest.raises(NoDaemon, match=r"no daemon answers at .*control\.sock; start it with `penstock daemon`"):
        ask(fake.run, READY)
    fake.start()
    fake.close()  # its socket stays
    with pytest.raises(NoDaemon):
        ask(fake.run, READY)
    with pytest.raises(NoDaemon):
        ask(Path("/" + "x" * 200), READY)


def test_an_installed_one_is_started_as_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DEFAULT_RUN", tmp_path)
    monkeypatch.setattr(client, "UNIT", tmp_path / "penstock.service")
    with pytest.raises(NoDaemon, match="`penstock daemon`"):
        ask(tmp_path, READY)
    (tmp_path / "penstock.service").touch()
    with pytest.raises(NoDaemon, match=r"`systemctl start penstock\.service`"):
        ask(tmp_path, READY)
    with pytest.raises(NoDaemon, match="`penstock daemon`"):
        ask(tmp_path / "another", READY)


@pytest.mark.parametrize("answer", [b"", b"{}\n", b"nonsense\n", b"[1]\n", b'{"ok": true, "result": {}}'])
def test_no_whole_answer(fake: FakeDaemon, answer: bytes) -> None:
    fake.replies["ready"] = answer
    with fake, pytest.raises(NoDaemon):
        ask(fake.run, READY)


def test_an_answer_that_does_not_come(tmp_path: Path) -> None:
    silent = FakeDaemon(tmp_path)
    silent.run.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(silent.run / "control.sock"))
        listener.listen()
        with pytest.raises(NoDaemon, match=r"does not answer within 0.01 s"):
            ask(silent.run, READY, 0.01)


@pytest.mark.root
def test_not_allowed_to_ask(fake: FakeDaemon) -> None:
    """In a child, which gives up being root."""
    with fake:
        fake.home.chmod(0o755)
        fake.run.chmod(0o700)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setresuid(65534, 65534, 65534)
                ask(fake.run, READY)
            except CannotTell:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
