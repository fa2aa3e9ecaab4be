"""Which ports are for whom, and who is known by its words."""

import pytest

from penstock.core import planes
from penstock.core.policy import Match, Mode, PortRange, Ports, Workload
from penstock.core.servers import SERVERS


def workload(name: str = "w", **match: str) -> Workload:
    return Workload(name, Mode.ENFORCE, (), (), (Match(**match),))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (workload("vllm"), {"vllm"}),
        (workload("vllm-8b"), {"vllm"}),
        (workload("my-ollama2"), {"ollama"}),
        (workload(unit="vllm@*.service"), {"vllm"}),
        (workload(unit="ray*.service"), {"ray"}),
        (workload(unit="Ollama.service"), {"ollama"}),
        (workload(container="tritonserver"), {"triton"}),
        (workload(exe="/opt/vllm/bin/python3"), {"vllm"}),
        (workload("a", exe="/usr/bin/text-generation-launcher"), {"text-generation-inference"}),
        (workload("llama-server", unit="ollama.service"), {"llama-server", "ollama"}),
        (workload("prometheus"), {"prometheus"}),
        (workload("array"), set()),
        (workload("rayon"), set()),
        (workload("my-server", unit="model.service"), set()),
    ],
)
def test_servers_are_known_by_whole_words(found: Workload, expected: set[str]) -> None:
    assert planes.servers_of(found) == expected


def test_what_the_tables_name_is_known() -> None:
    """A server that nothing is recognised as would never count."""
    names = {*(one.of for one in planes.ADMIN_PORTS if one.of), *planes.SHARED}
    assert names == {name for one in names for name in planes.servers_of(workload(one))}


@pytest.mark.parametrize("name", sorted(planes.SHARED))
def test_shared_ports_are_ports_of_the_server(name: str) -> None:
    (server,) = (server for server in SERVERS if server.name == name)
    assert set(planes.SHARED[name].ports) <= set(server.ports)


def test_a_port_is_there_once() -> None:
    ports = [(one.port, one.of) for one in planes.ADMIN_PORTS]
    assert len(ports) == len(set(ports))


def test_what_many_programs_use_counts_for_its_own_server() -> None:
    assert 8265 in planes.admin_ports(())
    for name, port in (("mlflow", 5000), ("prometheus", 9090), ("triton", 8002), ("torchserve", 8081)):
        assert port not in planes.admin_ports({"vllm"})
        assert port in planes.admin_ports({name})
    assert planes.shared_ports(()) == {}
    assert planes.shared_ports({"triton"}).keys() == {8000, 8001}


def test_which_ports_a_rule_opens() -> None:
    known = planes.Known([8265, 22, 10001])
    assert known.among(Ports((PortRange("tcp", 22, 22), PortRange("tcp", 8000, 9000)))) == [22, 8265]
    assert known.among(Ports((PortRange("tcp", 0, 65535), PortRange("tcp", 22, 22)))) == [22, 8265, 10001]
    assert known.among(Ports((PortRange("udp", 0, 65535), PortRange("tcp", 8266, 10000)))) == []
