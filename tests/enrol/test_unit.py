"""What a unit is, and which ones are refused: asked of a fake systemd."""

from __future__ import annotations

import pytest

from enrol.fake_systemd import OLLAMA, FakeSystemd, systemd
from penstock.enrol import unit
from penstock.enrol.running import Listener, Process
from penstock.errors import PenstockError

__all__ = ["systemd"]


def test_a_service_that_does_not_run(systemd: FakeSystemd) -> None:
    systemd.add("ollama.service", **OLLAMA)
    match, [facts] = unit.look("ollama")
    assert (match, facts.name, facts.match) == ("ollama.service", "ollama.service", "ollama.service")
    assert facts.server
    assert facts.server.name == "ollama"
    assert (facts.user, facts.own_slice, facts.processes, facts.listeners) == ("ollama", False, (), ())


def test_a_service_that_runs(systemd: FakeSystemd) -> None:
    systemd.add("model.service", ExecStart="/opt/start.sh", Slice="gpu.slice")
    systemd.ports = (Listener(8000, "tcp", local=False),)
    systemd.run_unit(
        "model.service",
        Process(10, "/opt/start.sh", "start.sh", ("/opt/start.sh",)),
        Process(11, "/x/python3", "vllm", ("/x/python3", "/x/vllm", "serve")),
    )
    facts = unit.look("model.service")[1][0]
    assert facts.server
    assert facts.server.name == "vllm"
    assert facts.own_slice
    assert (facts.user, facts.listeners) == ("root", systemd.ports)


def test_a_template_and_its_instances(systemd: FakeSystemd) -> None:
    systemd.add("vllm@.service", ExecStart="/x/vllm serve", Slice="system-vllm.slice")
    match, [facts] = unit.look("vllm@.service")
    assert (match, facts.name, facts.template, facts.own_slice) == ("vllm@*.service", "vllm@.service", True, False)
    systemd.add("vllm@a.service", FragmentPath="/etc/systemd/system/vllm@.service", Slice="system-vllm.slice")
    systemd.run_unit("vllm@a.service", Process(7, "/x/vllm", "vllm", ("/x/vllm", "serve")))
    assert [process.pid for process in unit.look("vllm@.service")[1][0].processes] == [7]
    match, [facts] = unit.look("vllm@a")
    assert (match, facts.name, facts.own_slice) == ("vllm@a.service", "vllm@a.service", False)
    match, found = unit.look("vllm*.service")
    assert (match, [facts.name for facts in found]) == ("vllm*.service", ["vllm@.service"])


def test_a_glob(systemd: FakeSystemd) -> None:
    for name in ("ray-head.service", "ray-worker.service", "array.service"):
        systemd.add(name, ExecStart="/x/ray start")
    match, found = unit.look("ray*")
    assert (match, [facts.name for facts in found]) == ("ray*.service", ["ray-head.service", "ray-worker.service"])
    with pytest.raises(PenstockError, match=r"no service matches none\*\.service"):
        unit.look("none*")


def test_an_alias_is_resolved(systemd: FakeSystemd) -> None:
    systemd.add("model.service")
    systemd.aliases["llm.service"] = "model.service"
    assert unit.look("llm.service")[0] == "model.service"
    systemd.aliases["guard.service"] = "penstock-floor.service"
    with pytest.raises(PenstockError, match="is a part of penstock itself"):
        unit.look("guard.service")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "cannot be the name of a unit"),
        ("a b", "cannot be the name of a unit"),
        ("/etc/systemd/system/a.service", "cannot be the name of a unit"),
        ("a\x1b[0m", r"`a\\x1b\[0m` cannot be"),
        ("a" * 256, "cannot be the name of a unit"),
        ("*", "names no one service"),
        ("@a.service", "names no one service"),
        (".service", "names no one service"),
        ("a.socket", "is a socket, and only a service can be protected; protect the service that it starts"),
        ("a.scope", "is a scope, and only a service can be protected; penstock adopt PID"),
        ("system.slice", "is a slice"),
        ("a.timer", "is a timer"),
        ("systemd-logind", "is a part of the system itself"),
        ("dbus.service", "is a part of the system itself"),
        ("penstock.service", "is a part of penstock itself"),
        ("penstock-floor-again", "is a part of penstock itself"),
    ],
)
def test_names(systemd: FakeSystemd, name: str, text: str) -> None:
    with pytest.raises(PenstockError, match=text) as caught:
        unit.look(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("properties", "text"),
    [
        ({"LoadState": "not-found"}, "there is no unit x.service"),
        ({"LoadState": "masked"}, "x.service is masked: it cannot start; systemctl unmask x.service"),
        ({"LoadState": "bad-setting", "LoadError": "y \x1b"}, "systemd cannot load x.service: y"),
        ({"Transient": "yes"}, "is transient"),
        ({"FragmentPath": "/run/systemd/generator.late/x.service"}, "is generated anew at each boot"),
        ({"DefaultDependencies": "no"}, "starts before the host is up"),
        ({"PrivateNetwork": "yes"}, "has a network of its own"),
        ({"NetworkNamespacePath": "/run/netns/a"}, "has a network of its own"),
        ({"ExecStart": "/usr/bin/docker run --rm vllm"}, "only runs /usr/bin/docker"),
        ({"ExecStart": "/usr/bin/env A=b podman start -a m"}, "only runs podman"),
        ({"ExecStart": "/bin/sh -ec exec docker-compose up"}, "only runs docker-compose"),
    ],
)
def test_units_that_cannot_be_put_into_a_slice(
    systemd: FakeSystemd, properties: dict[str, str], text: str
) -> None:
    systemd.add("x.service", **properties)
    with pytest.raises(PenstockError) as caught:
        unit.look("x.service")
    assert text in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_script_that_became_a_container_client(systemd: FakeSystemd) -> None:
    systemd.add("x.service", ExecStart="/opt/start.sh")
    systemd.run_unit("x.service", Process(5, "/usr/bin/docker", "docker", ("docker", "run", "vllm")))
    with pytest.raises(PenstockError, match="only runs /usr/bin/docker"):
        unit.look("x.service")


def test_a_name_in_an_argument_is_no_client(systemd: FakeSystemd) -> None:
    systemd.add("x.service", ExecStart="/usr/bin/llama-server --alias docker")
    assert unit.look("x.service")[1][0].server
