"""`protect` without the command line: what it writes, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from enrol.fake_systemd import OLLAMA, FakeSystemd, systemd
from penstock import files
from penstock.core.parse import parse
from penstock.core.policy import Mode
from penstock.enrol import dropin, protect, systemctl
from penstock.enrol.dropin import Hide
from penstock.enrol.protect import Plan, Request
from penstock.enrol.running import Listener, Process
from penstock.errors import PenstockError
from penstock.files import read_config, read_presets
from test_examples import EXAMPLES

__all__ = ["systemd"]

NOW = datetime(2026, 12, 1, tzinfo=UTC)
OTHER = "version: 1\nworkload: {}\nmode: enforce\nmatch: {{unit: '{}'}}\negress: []\ningress: []\n"

Ask = Callable[..., Plan]


@pytest.fixture(autouse=True)
def _is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "etc/rules.d").mkdir(parents=True)
    (tmp_path / "etc/penstock.yaml").write_bytes(EXAMPLES["penstock.yaml"])
    return tmp_path / "etc"


@pytest.fixture
def ask(systemd: FakeSystemd, config: Path) -> Ask:
    """Plan it."""

    def asked(unit: str, name: str | None = None, in_force: frozenset[str] = frozenset()) -> Plan:
        return protect.plan(Request(unit, name, config, in_force, NOW))

    return asked


def contents(home: Path) -> dict[str, str]:
    """All files below, and directories as such."""
    found = {str(path.relative_to(home)): path for path in home.rglob("*")}
    return {name: path.read_text() if path.is_file() else "" for name, path in found.items()}


def refused(ask: Ask, home: Path, *arguments: Any, **options: Any) -> str:
    """What is said; nothing was written, and it is one line."""
    before = contents(home)
    with pytest.raises(PenstockError) as caught:
        protect.perform(ask(*arguments, **options))
    assert contents(home) == before
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_known_server(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    systemd.add("ollama.service", **OLLAMA)
    systemd.ports = (Listener(11434, "tcp", local=True),)
    argv = ("ollama", "serve", "--key=x")
    systemd.run_unit("ollama.service", Process(9, "/usr/local/bin/ollama", "ollama", argv))
    plan = ask("ollama")
    assert contents(config.parent).keys() == {"etc", "etc/penstock.yaml", "etc/rules.d"}
    assert (plan.workload, plan.match, plan.in_force) == ("ollama", "ollama.service", False)
    done = protect.perform(plan)
    assert done.written == (dropin.pending_path("ollama.service"), config / "rules.d/ollama.yaml")
    policy = parse(read_config(config), read_presets(config)).policy
    assert policy
    workload = policy.workloads["ollama"]
    assert (workload.mode, workload.match[0].unit) == (Mode.OBSERVE, "ollama.service")
    text = (config / "rules.d/ollama.yaml").read_text()
    found = "/usr/local/bin/ollama, looks like ollama, user ollama, listens on 11434/tcp (this host only)"
    assert f"# ollama.service: {found}\n# Beware: " in text
    assert "penstock enforce ollama --confirm 60s" in text.partition("version:")[0], "how to go on"
    assert "--key" not in text
    assert systemd.said == [], "nothing was armed, restarted or reloaded"


def test_again_is_harmless(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    systemd.add("ollama.service", **OLLAMA)
    protect.perform(ask("ollama.service"))
    (config / "rules.d/ollama.yaml").write_text(OTHER.format("ollama", "ollama.service"))
    before = contents(config.parent)
    plan = ask("ollama.service")
    assert (plan.rules, plan.workload) == (None, "ollama")
    assert plan.drop_ins["ollama.service"] is not None
    assert protect.perform(plan).written == ()
    assert contents(config.parent) == before


def test_in_force_already(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    """The rules came first, by hand: then the drop-in counts at once."""
    systemd.add("ollama.service", **OLLAMA)
    (config / "rules.d/mine.yaml").write_text(OTHER.format("mine", "olla*.service"))
    plan = ask("ollama.service", in_force=frozenset({"mine"}))
    assert (plan.workload, plan.rules, plan.in_force) == ("mine", None, True)
    done = protect.perform(plan)
    assert (done.armed, done.written) == (("ollama.service",), (dropin.armed_path("ollama.service"),))
    assert systemd.said == [("daemon-reload",)]
    assert "Slice=penstock-mine.slice" in dropin.armed_path("ollama.service").read_text()


def test_a_template_and_an_instance(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    systemd.add("vllm@.service", ExecStart="/x/vllm serve --port 8003")
    protect.perform(ask("vllm@.service"))
    assert (config.parent / "system/vllm@.service.d" / dropin.PENDING).is_file()
    text = (config / "rules.d/vllm.yaml").read_text()
    assert "match: {unit: 'vllm@*.service'}" in text
    assert "- ports: [8003]" in text
    plan = ask("vllm@a.service")
    assert plan.rules is None, "its template's rules are its"
    assert plan.drop_ins["vllm@a.service"] == dropin.of_unit("vllm@.service"), "and so is the drop-in"


def test_a_glob(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    for name in ("ray-head.service", "ray-worker.service"):
        systemd.add(name, ExecStart="/x/ray start --block")
    protect.perform(ask("ray*.service"))
    assert [(one.unit, one.workload) for one in dropin.find()] == [
        ("ray-head.service", "ray"),
        ("ray-worker.service", "ray"),
    ]
    systemd.add("ray-extra.service", ExecStart="/x/ray start --block")
    plan = ask("ray-extra")
    assert (plan.workload, plan.rules, plan.drop_ins) == ("ray", None, {"ray-extra.service": None})


def test_an_unknown_server_and_no_configuration_at_all(systemd: FakeSystemd, config: Path) -> None:
    systemd.add("thing.service", ExecStart="/opt/thing --port=9000")
    fresh = config.parent / "fresh"
    plan = protect.plan(Request("thing", None, fresh, frozenset(), NOW))
    assert not fresh.exists()
    protect.perform(plan)
    assert "- ports: [9000]" in (fresh / "rules.d/thing.yaml").read_text()


def test_files_that_name_it_already(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    """The gateway's rules were written first, and cannot be applied without it."""
    systemd.add("ollama.service", **OLLAMA)
    gateway = OTHER.format("gateway", "g.service")
    gateway = gateway.replace("egress: []", "egress: [{to: 'workload:ollama', ports: [11434]}]")
    (config / "rules.d/gateway.yaml").write_text(gateway)
    protect.perform(ask("ollama.service"))
    assert parse(read_config(config), read_presets(config)).policy


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("ollama.service", "ollama"),
        ("vllm@a.service", "vllm"),
        ("vllm*.service", "vllm"),
        ("Open_WebUI.service", "open-webui"),
        ("open\\x2dwebui.service", "open-webui"),
        ("a.b.service", "a-b"),
        ("x" * 60 + ".service", "x" * 48),
        ("x" * 47 + "-y.service", "x" * 47),
        ("_.service", ""),
    ],
)
def test_a_name_from_the_units(unit: str, name: str) -> None:
    assert protect.name_for(unit) == name


def test_refusals_of_names(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    home = config.parent
    systemd.add("ollama.service", **OLLAMA)
    systemd.add("_1.service", ExecStart="/x")
    systemd.add("host.service", ExecStart="/x")
    for name in ("Ollama", "a" * 49, "-a", "", "any", "a\x1b"):
        assert "cannot be the name of a workload" in refused(ask, home, "ollama", name)
    assert "no name of a workload follows from host.service" in refused(ask, home, "host")
    (config / "rules.d/o.yaml").write_text(OTHER.format("ollama", "else.service"))
    assert "there is a workload ollama already, and it does not match" in refused(ask, home, "ollama")
    (config / "rules.d/o.yaml").write_text(OTHER.format("o", "ollama.service"))
    assert "the workload o matches ollama.service already" in refused(ask, home, "ollama", "p")
    (config / "rules.d/p.yaml").write_text(OTHER.format("p", "olla*.service"))
    assert "the rule files have mistakes, the first in rules.d/" in refused(ask, home, "ollama")
    (config / "rules.d/o.yaml").write_text(OTHER.format("o", "*lama.service"))
    assert "several workloads match ollama.service: o, p" in refused(ask, home, "ollama")


def test_refusals_of_places(systemd: FakeSystemd, ask: Ask, config: Path) -> None:
    home = config.parent
    systemd.add("ollama.service", **OLLAMA)
    systemd.add("penstock-ollama.slice")
    assert "there is a slice penstock-ollama.slice already" in refused(ask, home, "ollama")
    del systemd.units["penstock-ollama.slice"]
    (config / "rules.d/ollama.yaml").symlink_to("/dev/null")
    assert "is there already and is not this workload's" in refused(ask, home, "ollama")
    (config / "rules.d/ollama.yaml").unlink()
    dropin.armed_path("ollama.service").parent.mkdir(parents=True)
    dropin.armed_path("ollama.service").write_text("[Service]\n")
    assert "is not from penstock" in refused(ask, home, "ollama")
    dropin.armed_path("ollama.service").unlink()
    dropin.write_pending("ollama.service", "other")
    assert "puts ollama.service into the workload other" in refused(ask, home, "ollama")


def test_refusals_of_hosts(
    systemd: FakeSystemd, ask: Ask, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = config.parent
    systemd.add("ollama.service", **OLLAMA)
    del systemd.units["penstock-floor.service"]
    assert "penstock is not installed as a service" in refused(ask, home, "ollama")
    systemd.add("penstock-floor.service")
    (config / "penstock.yaml").write_text("version: 2\n")
    assert "the rule files have mistakes" in refused(ask, home, "ollama")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root may protect a unit; run it with sudo" in refused(ask, home, "ollama")
    monkeypatch.setattr(systemctl, "available", lambda: False)
    assert "this host is not run by systemd" in refused(ask, home, "ollama")


@pytest.mark.parametrize("at", [0, 1])
def test_a_read_only_etc_leaves_nothing_half_done(
    systemd: FakeSystemd, ask: Ask, config: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    systemd.add("ollama.service", **OLLAMA)
    real = files.replace

    def read_only(path: Path, data: bytes, mode: int = 0o600) -> None:
        if path.name == (dropin.PENDING, "ollama.yaml")[at]:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real(path, data, mode)

    monkeypatch.setattr("penstock.enrol.protect.put_file", read_only)
    monkeypatch.setattr(dropin, "replace", read_only)
    (config / "rules.d").rmdir()
    text = refused(ask, config.parent, "ollama")
    assert text.endswith("cannot be written: Read-only file system; nothing was changed")


def test_warnings(systemd: FakeSystemd, ask: Ask) -> None:
    systemd.add("a.service", ExecStart="/x", Slice="gpu.slice", Delegate="yes")
    first, second, third = ask("a").warnings
    assert "gpu.slice on purpose" in first
    assert "Delegate=" in second
    assert "runs as root" in third
    systemd.add("b.service", ExecStart="/x", DynamicUser="yes")
    assert ask("b").warnings == ()


@pytest.mark.parametrize(
    ("properties", "rooted"),
    [
        ({"RootDirectory": "/opt/a"}, True),
        ({"RootImage": "/a.raw"}, True),
        ({"RootDirectory": "/"}, False),
        ({}, False),
    ],
)
def test_the_drop_in_is_for_the_root_that_the_unit_has(
    systemd: FakeSystemd, ask: Ask, properties: dict[str, str], rooted: bool
) -> None:
    systemd.add("a.service", ExecStart="/x", **properties)
    protect.perform(ask("a"))
    written = dropin.pending_path("a.service").read_text()
    assert written == dropin.text("a.service", "a", Hide.OWN_ROOT if rooted else Hide.NO_RESOLVED)
    assert ask("a").stale == frozenset()
    dropin.RESOLVE.mkdir()
    assert ask("a").stale == (frozenset() if rooted else {"a.service"})


def test_a_drop_in_of_another_version_is_written_anew(systemd: FakeSystemd, ask: Ask) -> None:
    systemd.add("v@.service", ExecStart="/x")
    systemd.add("v@1.service", ExecStart="/x")
    protect.perform(ask("v@.service"))
    path = dropin.pending_path("v@.service")
    wanted = path.read_text()
    for unit in ("v@.service", "v@1.service"):  # an instance has its template's
        path.write_text(wanted.splitlines(keepends=True)[0])
        again = ask(unit)
        assert again.stale == {unit}
        assert protect.perform(again).written == (path,)
        assert path.read_text() == wanted
        assert protect.perform(ask(unit)).written == ()
