"""What is shipped in rules/ is right, and says what the README says of it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.cli.check import check_files
from penstock.core.checking import examine_preset
from penstock.core.parse import parse, parse_file
from penstock.core.policy import NamePeer
from penstock.core.presets import Preset
from penstock.core.servers import SERVERS, Server
from penstock.files import read_config, read_presets

RULES = Path(__file__).parents[1] / "rules"
EXAMPLES = {path.name: path.read_bytes() for path in sorted((RULES / "examples").glob("*.yaml"))}
GATEWAY = read_config(RULES / "examples/gateway")
"""A whole configuration: README's second example."""
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def test_nothing_is_wrong_with_all_together() -> None:
    assert check_files(EXAMPLES, read_presets(), NOW) == ()


def test_nothing_is_wrong_with_the_gateway() -> None:
    assert sorted(GATEWAY) == ["penstock.yaml", "rules.d/llama-server.yaml", "rules.d/nginx.yaml"]
    assert check_files(GATEWAY, read_presets(), NOW) == ()


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("rules.d/nginx.yaml", b"egress:\n  - to: workload:llama-server\n    ports: [8080]\n"),
        ("rules.d/llama-server.yaml", b"ingress:\n  - ports: [8080]\n    from: workload:nginx\n"),
    ],
)
def test_the_gateway_takes_a_rule_of_each(path: str, rule: bytes) -> None:
    assert rule in GATEWAY[path]
    files = {**GATEWAY, path: GATEWAY[path].replace(rule, rule.partition(b"\n")[0] + b" []\n")}
    codes = {problem.code for problem in check_files(files, read_presets(), NOW) if problem.severity == "error"}
    assert "one-sided" in codes


@pytest.mark.parametrize("name", ["my-server.yaml", "llama-server.yaml"])
def test_in_force_today(name: str) -> None:
    files = {key: EXAMPLES[key] for key in ("penstock.yaml", name)}
    assert check_files(files, read_presets(), NOW) == ()


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"penstock.yaml"}))
def test_each_example_tests_itself_and_denies_metadata(name: str) -> None:
    policy = parse(EXAMPLES, read_presets()).policy
    assert policy is not None
    texts = [sentence.text for sentence in policy.workloads[name.removesuffix(".yaml")].sentences]
    assert "egress 169.254.169.254:80 deny" in texts


def test_the_gateway_tests_itself() -> None:
    policy = parse(GATEWAY).policy
    assert policy is not None
    for workload in policy.workloads.values():
        assert "egress 169.254.169.254:80 deny" in [sentence.text for sentence in workload.sentences]


PRESETS = {path.stem: path for path in sorted((RULES / "presets").glob("*.yaml"))}


def preset(name: str) -> Preset:
    result = parse_file(f"{name}.yaml", PRESETS[name].read_bytes())
    assert isinstance(result.part, Preset)
    return result.part


def server_of(name: str) -> Server | None:
    return next((server for server in SERVERS if server.name == preset(name).server), None)


WITH_SERVER = [name for name in PRESETS if server_of(name)]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_in_order(name: str) -> None:
    result = parse_file(f"{name}.yaml", PRESETS[name].read_bytes())
    assert result.problems == ()
    assert preset(name).name == name
    assert examine_preset(preset(name), NOW) == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_where_everything_was_seen(name: str) -> None:
    """And no day of it is in the future or before the products were there."""
    found = preset(name)
    entries = [found.origin, *(o.origin for o in found.openings), *(known.origin for known in found.known)]
    for origin in entries:
        assert origin.source
        assert "2024-01-01" <= origin.date <= NOW.date().isoformat()
    assert all(opening.purpose and opening.rule.id for opening in found.openings)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hand_nobody_a_door(name: str) -> None:
    """Whole names, and patterns only where the owner of the zone gives no names to strangers."""
    patterns = {p.pattern for rule in preset(name).rules for p in rule.peers if isinstance(p, NamePeer)}
    assert {pattern for pattern in patterns if "*" in pattern} <= {"*.hf.co"}
    assert all(isinstance(peer, NamePeer) for rule in preset(name).rules for peer in rule.peers)


@pytest.mark.parametrize("name", PRESETS)
def test_any_preset_may_be_used_beside_any_other(name: str) -> None:
    """Without a warning, so that none opens what another one keeps denied as a call home."""
    for other in PRESETS:
        uses = "".join(f"  - use: {use}\n" for use in dict.fromkeys((name, other)))
        text = f"version: 1\nworkload: w\nmode: enforce\negress:\n{uses}ingress: []\n"
        assert check_files({"rules.d/w.yaml": text.encode()}, read_presets(), NOW) == (), other


@pytest.mark.parametrize("name", WITH_SERVER)
def test_ports_of_a_preset_are_those_of_the_server(name: str) -> None:
    found, server = preset(name), server_of(name)
    assert server
    listed = {port for one in (*found.inference.ranges, *found.admin.ranges) for port in (one.first, one.last)}
    assert set(server.ports) <= listed


@pytest.mark.parametrize("name", WITH_SERVER)
def test_lint_knows_the_admin_ports_of_a_preset(name: str) -> None:
    """Clients at a port for administrators are an error, at one that carries both planes a warning."""
    found, server = preset(name), server_of(name)
    assert server
    host = EXAMPLES["penstock.yaml"]
    for one in found.admin.ranges:
        text = f"version: 1\nworkload: {server.name}\nmode: enforce\negress: []\n"
        text += f"ingress: [{{ports: [{one}], from: clients}}]\n"
        codes = {p.code for p in check_files({"penstock.yaml": host, "rules.d/w.yaml": text.encode()}, {}, NOW)}
        assert codes == ({"two-planes"} if one in found.inference.ranges else {"admin-port"}), one


@pytest.mark.parametrize("example", sorted(set(EXAMPLES) - {"penstock.yaml"}))
def test_an_example_uses_the_preset_of_its_server(example: str) -> None:
    mine = [name for name in WITH_SERVER if getattr(server_of(name), "example", "") == example]
    assert [name for name in mine if f"- use: {name}\n" not in EXAMPLES[example].decode()] == []
