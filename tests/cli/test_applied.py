"""The applied policy, read without a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from cli.fake_daemon import FILES, FakeDaemon
from penstock.cli.applied import applied_policy, complete_workload, no_such, path_of, read_applied
from penstock.cli.context import CannotTell
from penstock.cli.main import penstock
from penstock.core.policy import Place, Policy


@pytest.fixture
def fake(tmp_path: Path) -> FakeDaemon:
    """One that is dead."""
    made = FakeDaemon(tmp_path)
    made.write()
    return made


def test_the_policy(fake: FakeDaemon) -> None:
    assert sorted(applied_policy(fake.run).workloads) == ["litellm", "ollama"]


def test_what_is_not_there_and_what_is_broken(fake: FakeDaemon) -> None:
    path = fake.home / "state/applied.json"
    assert read_applied(path.with_name("x")) is None
    path.write_text("[]")
    with pytest.raises(CannotTell, match="is no saved state of penstock: the saved state is damaged"):
        read_applied(path)
    fake.write({**FILES, "rules.d/x.yaml": b"version: 9"})
    with pytest.raises(CannotTell, match="this version cannot read the applied policy"):
        applied_policy(fake.run)


@pytest.mark.root
@pytest.mark.parametrize("closed", ["run", "state"])
def test_who_may_not_read_it_is_told_so(fake: FakeDaemon, closed: str) -> None:
    """In a child that gives up being root."""
    for directory in (fake.home, *fake.home.parents):
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o711)
    (fake.home / closed).chmod(0o700)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            applied_policy(fake.run)
        except CannotTell as e:
            status = 0 if "only root may read" in str(e) and "sudo" in e.hint else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_completion_is_silent_when_nothing_is_known(fake: FakeDaemon) -> None:
    def completed(run: Path, text: str) -> list[str]:
        with penstock.make_context("penstock", ["--run", str(run), "status"]) as ctx:
            return complete_workload(ctx, click.Argument(["workload"]), text)

    assert completed(fake.run, "") == ["litellm", "ollama"]
    assert completed(fake.run, "oll") == ["ollama"]
    assert completed(fake.home, "") == []


def test_words(tmp_path: Path) -> None:
    assert str(no_such("\x1b", Policy())) == "the policy has no workload `\\x1b`; it has no workloads"
    assert path_of(Place("rules.d/a.yaml", 3, 1), Path("/etc/penstock")) == "/etc/penstock/rules.d/a.yaml"
    assert path_of(Place("a\x1b", 3, 1), None) == "a\\x1b"
    assert path_of(Place("", 0, 0), Path("/etc")) == ""
