"""First rules: each shipped example on hosts that define what it names, and on hosts that do not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from penstock.cli.check import check_files
from penstock.core.policy import Mode, WorkloadPeer
from penstock.core.problems import any_error
from penstock.enrol.draft import Draft, Wanted, draft
from penstock.enrol.running import Listener
from penstock.errors import PenstockError
from penstock.files import read_presets
from test_examples import EXAMPLES

NOW = datetime(2026, 12, 1, tzinfo=UTC)
NETWORKS = {"penstock.yaml": EXAMPLES["penstock.yaml"]}
ALL = {f"rules.d/{name}" if name != "penstock.yaml" else name: data for name, data in EXAMPLES.items()}
SERVERS = sorted(set(EXAMPLES) - {"penstock.yaml"})


def drafted(
    example: str | None,
    files: Mapping[str, bytes],
    *ports: Listener,
    told: tuple[int, ...] = (),
    match: str = "x.service",
    name: str = "w",
) -> Draft:
    """The draft, which must pass `penstock check` as a file."""
    clients = ("clients",) if "penstock.yaml" in files else ()
    wanted = Wanted(f"rules.d/{name}.yaml", name, match, ("Found: a \\x1b thing",), tuple(ports), told, clients)
    text = EXAMPLES[example].decode() if example else None
    made = draft(wanted, text, files, read_presets(), NOW)
    problems = check_files({**files, wanted.path: made.text.encode()}, read_presets(), NOW)
    assert not any_error(problems), problems
    workload = made.policy.workloads[name]
    assert workload.mode is Mode.OBSERVE
    assert [one.unit for one in workload.match] == [match]
    return made


@pytest.mark.parametrize("name", SERVERS)
def test_each_example_on_an_empty_host(name: str) -> None:
    made = drafted(name, {})
    assert made.text.startswith("# Found: a \\x1b thing\n")
    assert "# left out: " in made.text or name == "llama-server.yaml"
    assert "egress 169.254.169.254:80 deny" in made.text


@pytest.mark.parametrize("name", SERVERS)
def test_each_example_with_everything_it_names(name: str) -> None:
    others = {path: data for path, data in ALL.items() if not path.endswith(f"/{name}")}
    made = drafted(name, others, name=name.removesuffix(".yaml"))
    assert made.left_out == ()
    ours, theirs = made.text.partition("\negress:")[2], EXAMPLES[name].decode().partition("\negress:")[2]
    assert ours == theirs


def test_what_is_left_out_says_why_and_can_be_taken_in_again() -> None:
    made = drafted("ollama.yaml", NETWORKS)
    rule, test = made.left_out
    assert rule.startswith("ingress `ports: [11434] from: workload:litellm`: ")
    assert test.startswith("test `ingress from workload:litellm 11434 allow`: ")
    assert "  # - ports: [11434]\n  #   from: workload:litellm\n" in made.text
    again = made.text.replace("  # - ports", "  - ports").replace("  #   from", "    from")
    gateway = b"version: 1\nworkload: litellm\nmode: observe\negress: []\ningress: []\n"
    files = {**NETWORKS, "rules.d/litellm.yaml": gateway, "rules.d/w.yaml": again.encode()}
    assert not any_error(check_files(files, read_presets(), NOW))


def test_another_port_than_the_examples() -> None:
    made = drafted("vllm.yaml", NETWORKS, Listener(8001, "tcp", local=False))
    assert made.policy.workloads["w"].ingress[0].ports.ranges[0].first == 8001
    assert "- ingress from clients 8001 deny" in made.text
    assert "8000" not in made.text.partition("egress:")[2]


def test_the_command_line_tells_the_main_one_of_several() -> None:
    ports = [Listener(port, "tcp", local=False) for port in (7000, 8005, 40001)]
    made = drafted("vllm.yaml", NETWORKS, *ports, told=(8005,))
    assert made.policy.workloads["w"].ingress[0].ports.ranges[0].first == 8005
    assert "# also listening, and opened by no rule: 7000/tcp, 40001/tcp\n" in made.text
    unknown = drafted("vllm.yaml", NETWORKS, *ports)
    assert unknown.policy.workloads["w"].ingress == ()
    assert "nothing listened there when this was written" in unknown.text


def test_instances_with_a_port_each() -> None:
    ports = [Listener(port, "tcp", local=False) for port in (8001, 8002)]
    made = drafted("vllm.yaml", NETWORKS, *ports, told=(8002, 8001))
    assert "  - ports: [8001, 8002]\n    from: admin\n" in made.text
    assert "- ingress from clients 8001 deny" in made.text


def test_the_rays_many_ports() -> None:
    ports = [Listener(port, "tcp", local=port == 52365) for port in (6379, 8265, 10001, 44217, 52365)]
    made = drafted("ray.yaml", NETWORKS, *ports)
    rest = "6379/tcp, 44217/tcp, 52365/tcp (this host only)"
    assert f"# also listening, and opened by no rule: {rest}\n" in made.text
    assert [str(r) for r in made.policy.workloads["w"].ingress[0].ports.ranges] == ["8265", "10001"]


def test_an_unknown_server() -> None:
    local, wide = Listener(9000, "tcp", local=True), Listener(9001, "tcp", local=False)
    ports = (local, wide, Listener(9002, "udp", local=False))
    made = drafted(None, NETWORKS, *ports)
    workload = made.policy.workloads["w"]
    assert workload.egress == ()
    assert [str(rule.ports.ranges[0]) for rule in workload.ingress] == ["9000", "9001", "9002/udp"]
    assert "from: [clients]" in made.text
    bare = drafted(None, {}, *ports)
    assert [str(rule.ports.ranges[0]) for rule in bare.policy.workloads["w"].ingress] == ["9000"]
    assert "plane: inference" in bare.text
    assert drafted(None, {}).policy.workloads["w"].ingress == ()


def test_an_admin_port_is_not_opened_to_clients() -> None:
    made = drafted(None, NETWORKS, Listener(8888, "tcp", local=False))
    assert made.policy.workloads["w"].ingress == ()
    assert "admin port 8888" in made.left_out[0]


@pytest.mark.parametrize("match", ["vllm@*.service", "a-[12].service", "open\\x2dwebui.service", "a:b.service"])
def test_names_that_yaml_would_read_otherwise(match: str) -> None:
    drafted("vllm.yaml", NETWORKS, match=match)


def test_mistakes_elsewhere_are_not_ours() -> None:
    with pytest.raises(PenstockError, match=r"the rule files have mistakes, the first in penstock\.yaml:1:10"):
        drafted("vllm.yaml", {"penstock.yaml": b"version: 2\n"})


def test_what_cannot_pass_is_refused() -> None:
    wanted = Wanted("rules.d/w.yaml", "Not A Name", "x.service", ())
    with pytest.raises(PenstockError, match="would not pass `penstock check`"):
        draft(wanted, None, {}, {}, NOW)


def test_a_workload_that_others_name() -> None:
    files = {**NETWORKS, "rules.d/g.yaml": EXAMPLES["my-server.yaml"]}
    made = drafted("litellm.yaml", files)
    peers = [peer for rule in made.policy.workloads["w"].rules for peer in rule.peers]
    assert not any(isinstance(peer, WorkloadPeer) for peer in peers)
