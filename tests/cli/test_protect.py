"""`penstock protect` as it is called: what it prints, with a fake systemd and a fake daemon's policy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.conftest import Call
from cli.fake_daemon import FakeDaemon
from enrol.fake_systemd import OLLAMA, FakeSystemd, systemd
from penstock.enrol import dropin
from penstock.enrol.running import Listener, Process
from penstock.errors import PenstockError

__all__ = ["systemd"]


@pytest.fixture(autouse=True)
def _is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def vllm(systemd: FakeSystemd) -> FakeSystemd:
    """vllm.service runs; the policy has no such workload."""
    systemd.add("vllm.service", ExecStart="/opt/vllm/bin/vllm serve", User="vllm")
    systemd.ports = (Listener(8000, "tcp", local=False),)
    argv = ("python3", "/opt/vllm/bin/vllm", "serve")
    systemd.run_unit("vllm.service", Process(9, "/opt/python3", "vllm", argv))
    return systemd


def test_what_it_says(call: Call, daemon: FakeDaemon, vllm: FakeSystemd) -> None:
    done = call("protect", "vllm")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    first, rest, third, *_ = done.stdout.splitlines()
    assert f"{first} {rest}" == (
        "vllm.service: /opt/vllm/bin/vllm, looks like vllm, user vllm, listens on 8000/tcp"
    )
    assert third.startswith("  Beware: its API key guards")
    path = daemon.home / "config/rules.d/vllm.yaml"
    assert f"wrote {path}: mode observe, " in done.stdout
    assert "    left out ingress `ports: [8000] from: admin reason: metrics`:" in done.stdout
    assert "wrote the drop-in of vllm.service; it waits until vllm is in force\n" in done.stdout
    assert "Now: nothing has changed for the service.  Next:\n  penstock plan " in done.stdout
    restart, _, last = done.stdout.splitlines()[-3:]
    assert (restart, last) == ("  systemctl restart vllm.service", "  penstock suggest vllm")
    assert [line for line in done.stdout.splitlines() if len(line) > 80 and str(daemon.home) not in line] == []
    assert vllm.said == []
    again = call("protect", "vllm.service")
    pending = dropin.pending_path("vllm.service")
    assert f"kept {path}: the rules of vllm match already\nkept {pending}\n" in again.stdout
    assert again.exit_code == 0


def test_plan_writes_nothing(call: Call, daemon: FakeDaemon, vllm: FakeSystemd) -> None:
    done = call("protect", "vllm", "--plan")
    assert done.exit_code == 0
    assert "would write the drop-in of vllm.service" in done.stdout
    assert done.stdout.endswith("nothing was written\n")
    assert not (daemon.home / "config/rules.d/vllm.yaml").exists()
    assert not dropin.UNITS.exists()


def test_json(call: Call, daemon: FakeDaemon, vllm: FakeSystemd) -> None:
    said = json.loads(call("protect", "vllm", "--json").stdout)
    assert said["units"] == [
        {
            "unit": "vllm.service",
            "executable": "/opt/python3",
            "server": "vllm",
            "user": "vllm",
            "running": True,
            "ports": [{"port": 8000, "protocol": "tcp", "local": False}],
            "slice": "system.slice",
            "dropin": str(dropin.pending_path("vllm.service")),
        }
    ]
    path = str(daemon.home / "config/rules.d/vllm.yaml")
    assert (said["v"], said["workload"], said["match"], said["in_force"]) == (1, "vllm", "vllm.service", False)
    assert said["rules"].pop("left_out")
    assert said["rules"] == {"path": path, "new": True}
    assert set(said["written"]) == {path, str(dropin.pending_path("vllm.service"))}
    assert (said["armed"], said["restarted"], said["warnings"]) == ([], [], [])


@pytest.fixture
def ollama(daemon: FakeDaemon, systemd: FakeSystemd) -> Path:
    """ollama.service runs, and is a workload of the applied policy; its rules file."""
    path = daemon.home / "config/rules.d/ollama.yaml"
    path.write_text(path.read_text() + "match: {unit: ollama.service}\n")
    systemd.add("ollama.service", **OLLAMA)
    systemd.run_unit("ollama.service", Process(9, "/usr/local/bin/ollama", "ollama", ("ollama", "serve")))
    return path


def test_restart(call: Call, systemd: FakeSystemd, ollama: Path) -> None:
    done = call("protect", "ollama", "--restart")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "restarted ollama.service: in penstock.slice/penstock-ollama.slice from now on\n" in done.stdout
    assert systemd.said == [("daemon-reload",), ("restart", "--", "ollama.service")]
    assert dropin.armed_path("ollama.service").exists()


def test_in_force_and_not_restarted(call: Call, systemd: FakeSystemd, ollama: Path) -> None:
    done = call("protect", "ollama")
    end = "Its slice takes over at its next start:\n  systemctl restart ollama.service\n"
    assert done.stdout.endswith(end)
    assert systemd.said == [("daemon-reload",)]
    assert json.loads(call("protect", "ollama", "--json").stdout)["units"][0]["dropin"] == str(
        dropin.armed_path("ollama.service")
    )


def test_a_restart_that_would_be_in_vain(call: Call, vllm: FakeSystemd) -> None:
    done = call("protect", "vllm", "--restart")
    assert done.exit_code == 1
    assert done.stderr == (
        "penstock: not restarted: vllm is not in force yet, so its slice would not be either\n"
    )
    assert vllm.said == []


def test_a_restart_that_fails(
    call: Call, systemd: FakeSystemd, ollama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(unit: str) -> None:
        raise PenstockError("Job failed", where=unit)

    monkeypatch.setattr("penstock.enrol.systemctl.restart", failing)
    done = call("protect", "ollama", "--restart")
    assert (done.exit_code, done.stderr) == (1, "penstock: ollama.service: Job failed\n")


def test_a_refusal_is_one_line(call: Call, systemd: FakeSystemd) -> None:
    done = call("protect", "none.service")
    text = "there is no unit none.service; see: systemctl list-unit-files --type=service"
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", f"penstock: {text}\n")


def test_usage(call: Call) -> None:
    assert call("protect").exit_code == 2
    assert call("protect", "a", "b").exit_code == 2


def test_a_template_is_restarted_by_a_glob(call: Call, systemd: FakeSystemd) -> None:
    systemd.add("vllm@.service", ExecStart="/opt/vllm serve")
    assert "\n  systemctl restart 'vllm@*.service'\n" in call("protect", "vllm@.service").stdout
