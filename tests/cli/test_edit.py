"""`penstock edit`, with editors that are scripts: visudo's habits."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Call
from cli.fake_daemon import FILES, FakeDaemon, policy, status
from penstock.cli import edit as command
from penstock.cli import editor as module
from penstock.errors import PenstockError

APPLIED: dict[str, Any] = {
    "changed": True, "hash": "new", "workloads": 2, "seconds": 0.1, "problems": [],
    "confirm_until": "2036-11-27T09:00:00Z",
}  # fmt: skip
Editor = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _daemon(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.replies["apply"] = lambda message: (
        APPLIED | ({} if message.arguments["confirm"] else {"confirm_until": None})
    )
    daemon.replies["confirm"] = {"confirmed": True, "hash": "new"}
    daemon.replies["rollback"] = {"changed": True, "hash": "old", "workloads": 2, "seconds": 0.1}
    daemon.replies["status"] = status(policy=policy(hash="new", confirm_until="2036-11-27T09:00:00Z"))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr(command, "leave_a_watcher", lambda trial: None)


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """An editor that does this with sed; each use is counted in a file beside."""

    def made(sed: str) -> Path:
        used = tmp_path / "used"
        script = tmp_path / "editor"
        script.write_text(f'#!/bin/sh\necho "$1" >> {used}\nsed -i "{sed}" "$1"\n')
        script.chmod(0o755)
        monkeypatch.setenv("EDITOR", str(script))
        return used

    return made


def rules(daemon: FakeDaemon) -> Path:
    return daemon.home / "config/rules.d/litellm.yaml"


def draft(daemon: FakeDaemon) -> Path:
    return daemon.home / "config/rules.d/.litellm.yaml.draft"


BEFORE = FILES["rules.d/litellm.yaml"].decode()
AFTER = BEFORE.replace("ports: [5432]", "ports: [5433]")
GOOD, BAD = "s/5432/5433/", "s/mode/mood/"


def commands(daemon: FakeDaemon) -> list[str]:
    return [request.command for request in daemon.requests]


def test_it_is_checked_planned_and_applied_on_trial(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    used = editor(GOOD)
    rules(daemon).chmod(0o640)
    done = call("edit", "litellm")
    assert done.exit_code == 0, done.output
    assert used.read_text() == f"{draft(daemon)}\n"
    assert "~ workload litellm" in done.stdout
    assert "10.30.1.5:5433" in done.stdout
    assert "Next: penstock apply" not in done.stdout
    assert "keep it with: penstock confirm" in done.stdout
    assert [r.arguments for r in daemon.requests if r.command == "apply"] == [{"confirm": 60}]
    assert rules(daemon).read_text() == AFTER
    assert stat.S_IMODE(rules(daemon).stat().st_mode) == 0o640
    assert not draft(daemon).exists()


def test_nothing_changed(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    editor("s/nothing/at all/")
    done = call("edit", "litellm")
    assert (done.exit_code, done.stdout) == (0, "nothing was changed\n")
    assert (commands(daemon), draft(daemon).exists()) == ([], False)


def test_comments_alone_need_no_trial(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    editor("1i # ours")
    done = call("edit", "litellm")
    assert done.exit_code == 0, done.output
    assert [r.arguments for r in daemon.requests if r.command == "apply"] == [{"confirm": 0}]
    assert rules(daemon).read_text() == "# ours\n" + BEFORE


def test_a_broken_draft_stays_for_the_next_try(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    editor(BAD)
    done = call("edit", "litellm")
    assert (done.exit_code, rules(daemon).read_text()) == (1, BEFORE)
    assert f"{rules(daemon)}:3:1: error: a workload file has no key `mood`" in done.stdout
    assert "the draft stays" in done.stderr
    assert commands(daemon) == []
    assert call("check").exit_code == 0  # nobody reads the draft
    editor("s/mood/mode/; s/5432/5433/")
    done = call("edit", "litellm")
    assert (done.exit_code, "a draft of an earlier try" in done.stderr) == (0, True)
    assert rules(daemon).read_text() == AFTER


def test_a_mistake_elsewhere_is_told_too(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    (daemon.home / "config/rules.d/ollama.yaml").write_text("nonsense\n")
    editor(GOOD)
    done = call("edit", "litellm")
    assert (done.exit_code, "ollama.yaml:1:1: error" in done.stdout) == (1, True)


def test_a_file_with_mistakes_can_be_mended(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    for broken in (BEFORE.replace("mode", "mood"), "nonsense: [\n"):
        rules(daemon).write_text(broken)
        editor("s/mood/mode/; s/nonsense/bad/")
        done = call("edit", "litellm")
        assert done.exit_code == (0 if "mood" in broken else 1), done.output


@pytest.mark.parametrize("trouble", ["refused", "daemon", "late"])
def test_what_is_not_in_force_is_not_in_the_file(
    daemon: FakeDaemon, call: Call, editor: Editor, trouble: str
) -> None:
    editor(GOOD)
    if trouble == "refused":
        daemon.replies["apply"] = {"changed": False, "refused": True, "hash": "old", "problems": []}
    elif trouble == "daemon":
        daemon.close()
    else:  # somebody else writes the file meanwhile
        (daemon.home / "editor").write_text(
            f"#!/bin/sh\nsed -i s/5432/5433/ \"$1\"\necho '# late' >> {rules(daemon)}\n"
        )
    done = call("edit", "litellm")
    assert done.exit_code == (2 if trouble == "daemon" else 1)
    assert rules(daemon).read_text() == BEFORE + ("# late\n" if trouble == "late" else "")
    assert draft(daemon).read_text() == AFTER
    assert "the draft stays" in done.stderr


def test_an_editor_that_fails(daemon: FakeDaemon, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "false")
    done = call("edit", "litellm")
    assert (done.exit_code, "ended with status 1" in done.stderr, draft(daemon).exists()) == (1, True, True)
    for wrong in ("/no/such/editor", "'"):
        monkeypatch.setenv("EDITOR", wrong)
        assert call("edit", "litellm").exit_code == 1
    assert rules(daemon).read_text() == BEFORE


def test_which_editor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.command({"VISUAL": "emacs -nw", "EDITOR": "vi"}) == ["emacs", "-nw"]
    assert module.command({"VISUAL": " ", "EDITOR": "vi"}) == ["vi"]
    monkeypatch.setattr(
        "penstock.cli.editor.shutil.which", lambda name: f"/bin/{name}" if name in ("vi", "nano") else None
    )
    assert module.command({}) == ["/bin/vi"]
    monkeypatch.setattr("penstock.cli.editor.shutil.which", lambda _: None)
    with pytest.raises(PenstockError, match="no editor"):
        module.command({})


def test_two_at_once(daemon: FakeDaemon, call: Call, editor: Editor) -> None:
    editor(GOOD)
    descriptor = os.open(rules(daemon).parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = call("edit", "litellm")
    assert (done.exit_code, "somebody else edits" in done.stderr) == (1, True)
    os.close(descriptor)
    assert call("edit", "litellm").exit_code == 0


def test_no_such_workload(call: Call, editor: Editor) -> None:
    editor(GOOD)
    done = call("edit", "litelm")
    assert (done.exit_code, "did you mean `litellm`" in done.stderr) == (2, True)


class Terminal:
    """The program on a terminal."""

    def __init__(self, daemon: FakeDaemon, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(daemon.run), *arguments]
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.said = ""

    def until(self, words: str, answer: str = "") -> None:
        deadline = time.monotonic() + 20
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            if select.select([self._master], [], [], 0.2)[0]:
                self.said += os.read(self._master, 4096).decode()
        self.said = self.said.partition(words)[2]
        os.write(self._master, answer.encode())

    def end(self) -> int:
        status = self.process.wait(20)
        os.close(self._master)
        return status


def test_what_now(daemon: FakeDaemon, editor: Editor) -> None:
    used = editor(BAD)
    terminal = Terminal(daemon, "edit", "litellm")
    terminal.until("What now?", "e\n")
    terminal.until("What now?", "x\n")
    assert terminal.end() == 1
    assert (len(used.read_text().splitlines()), draft(daemon).exists()) == (2, True)
    terminal = Terminal(daemon, "edit", "litellm")
    terminal.until("an earlier try", "")
    terminal.until("begin anew (q)", "q\n")
    terminal.until("What now?", "q\n")
    assert terminal.end() == 1
    assert (rules(daemon).read_text(), draft(daemon).exists()) == (BEFORE, False)


def test_a_word_on_the_terminal(daemon: FakeDaemon, editor: Editor) -> None:
    editor(GOOD)
    terminal = Terminal(daemon, "edit", "litellm", "--confirm", "2m")
    terminal.until("type yes to keep it", "no\n")
    assert terminal.end() == 1
    assert (rules(daemon).read_text(), draft(daemon).read_text()) == (BEFORE, AFTER)
    assert commands(daemon)[-1] == "rollback"
    terminal = Terminal(daemon, "edit", "litellm")
    terminal.until("begin anew (q)", "e\n")
    terminal.until("type yes to keep it", "yes\n")
    terminal.until("kept, and in")
    assert terminal.end() == 0
    assert (rules(daemon).read_text(), draft(daemon).exists()) == (BEFORE.replace("5432", "5433"), False)


def test_it_reverts_while_somebody_thinks(daemon: FakeDaemon, editor: Editor) -> None:
    editor(GOOD)
    terminal = Terminal(daemon, "edit", "litellm")
    terminal.until("type yes to keep it")
    daemon.replies["status"] = status(policy=policy(hash="old"))
    terminal.until("put back")
    assert terminal.end() == 1
    assert (rules(daemon).read_text(), draft(daemon).read_text()) == (BEFORE, AFTER)
