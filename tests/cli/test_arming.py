"""Drop-ins that wait for their workload: when they count, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.fake_daemon import FakeDaemon, status, workload
from penstock.cli.arming import HOST, Settled, settle
from penstock.enrol import dropin, systemctl


@pytest.fixture
def units(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with systemd, whose daemon has the workload litellm in force; units of litellm and of ghost."""
    made = tmp_path / "units"
    monkeypatch.setattr(dropin, "UNITS", made)
    monkeypatch.setattr(systemctl, "available", lambda: True)
    monkeypatch.setattr(systemctl, "daemon_reload", (made / "reloaded").touch)
    daemon.write(cgroup=HOST)
    for unit, name in (("one.service", "litellm"), ("two@.service", "litellm"), ("lost.service", "ghost")):
        assert dropin.write_pending(unit, name)
    return made


BOTH = (("one.service", "litellm"), ("two@.service", "litellm"))


def test_those_of_workloads_in_force_count_from_now_on(daemon: FakeDaemon, units: Path) -> None:
    assert settle(daemon.run, kept=True) == Settled(BOTH)
    assert dropin.armed_path("one.service").exists()
    assert dropin.pending_path("lost.service").exists()
    assert (units / "reloaded").exists()
    assert settle(daemon.run, kept=True) == Settled()


def test_what_may_revert_arms_nothing(daemon: FakeDaemon, units: Path) -> None:
    assert settle(daemon.run, kept=False) == Settled()
    assert dropin.pending_path("one.service").exists()


def test_units_of_a_workload_that_is_gone(daemon: FakeDaemon, units: Path) -> None:
    settle(daemon.run, kept=True)
    daemon.replies["status"] = status(workload("other"))
    for kept in (True, False):
        found = settle(daemon.run, kept=kept)
        assert found == Settled(stranded=BOTH)
    assert found.as_json()["stranded"][0] == {"unit": "one.service", "workload": "litellm"}
    assert "not in force: restarted now, it could reach nothing" in " ".join(found.lines())


def test_a_host_without_systemd_has_none(
    daemon: FakeDaemon, units: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemctl, "available", lambda: False)
    assert settle(daemon.run, kept=True) == Settled()
    assert dropin.pending_path("one.service").exists()


def test_a_daemon_of_another_tree_arms_nothing(daemon: FakeDaemon, units: Path) -> None:
    facts = json.loads((daemon.run / "daemon.json").read_text())
    (daemon.run / "daemon.json").write_text(json.dumps({**facts, "cgroup": "/sys/fs/cgroup/lab"}))
    assert settle(daemon.run, kept=True) == Settled()
    assert dropin.pending_path("one.service").exists()


def test_trouble(daemon: FakeDaemon, units: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (units / "one.service.d" / "50-penstock.conf").write_text("somebody else's")
    found = settle(daemon.run, kept=True)
    assert (found.armed, "is not from penstock" in found.trouble) == ((), True)
    found.complain()
    assert capsys.readouterr().err.startswith("penstock: in force, but the drop-ins of units are not in place: ")
    Settled().complain()
    assert capsys.readouterr().err == ""
    daemon.close()
    assert "no daemon answers" in settle(daemon.run, kept=True).trouble
