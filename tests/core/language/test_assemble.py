"""Names between files."""

from penstock.core.parse import parse

RULES = b"version: 1\nworkload: %s\nmode: enforce\negress: [%s]\ningress: []\n"


def test_a_workload_where_a_network_is_expected() -> None:
    files = {"rules.d/a.yaml": RULES % (b"a", b"{to: bb, ports: [1]}"), "rules.d/b.yaml": RULES % (b"bb", b"")}
    assert [p.line() for p in parse(files).problems] == [
        "rules.d/a.yaml:4:15: error: there is no network `bb`; write workload:bb for the workload"
    ]


def test_host_settings_are_there_once() -> None:
    host = b"version: 1\nhost: {admin_ports: [22]}\ndns: {upstream: [192.0.2.1]}\n"
    found = parse({"penstock.yaml": host, "penstock.d/x.yaml": host}).problems
    assert [(str(p.place), p.code) for p in found] == [
        ("penstock.yaml:2:21", "duplicate-key"), ("penstock.yaml:3:17", "duplicate-key")]  # fmt: skip


def test_networks_merge_and_a_workload_may_share_a_network_name() -> None:
    net = b"version: 1\nnetworks: {%s: {cidr: 10.0.0.0/8}}\n"
    files = {
        "penstock.d/a.yaml": net % b"a",
        "penstock.d/b.yaml": net % b"b",
        "rules.d/a.yaml": RULES % (b"a", b""),
    }
    policy = parse(files).policy
    assert policy is not None
    assert (set(policy.networks), set(policy.workloads)) == ({"a", "b"}, {"a"})
