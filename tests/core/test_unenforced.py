"""What later work enforces is said, and nothing else."""

from penstock.core.parse import parse
from penstock.core.unenforced import unenforced

HOST = b"""version: 1
networks: {lan: {interface: eth0, plane: inference}, net: {cidr: 10.0.0.0/8, plane: admin}}
host: {admin_ports: [22]}
dns: {upstream: [192.0.2.53]}
"""
WORKLOAD = b"""version: 1
workload: w
mode: enforce
match: [{unit: w.service}, {exe: /usr/bin/w}, {container: w}]
egress:
  - to: a.org
  - {to: [10.1.1.1, lan], ports: [1]}
  - {to: [10.1.1.1, net, 10.2.0.0/16, any, metadata], ports: [2]}
  - {to: any, ports: [3], except: lan}
ingress:
  - {from: [host, plane:admin, plane:inference, workload:w, net], ports: [1]}
  - {from: [any, net, "::1"], ports: [2]}
  - {from: [workload:w], ports: [2], except: 10.0.0.0/8}
  - {from: [net, lan], ports: [2], except: 10.0.0.0/9}
  - {from: [plane:inference], ports: [2], except: 10.0.0.0/9}
"""


def test_each_is_told_once() -> None:
    policy = parse({"penstock.yaml": HOST, "rules.d/w.yaml": WORKLOAD}).policy
    assert policy is not None
    found = unenforced(policy)
    assert {(p.severity, p.code) for p in found} == {("warning", "not-yet-enforced")}
    assert [p.line().replace("rules.d/w.yaml", "w") for p in found] == [
        "w:2:11: warning: recognising container w is not yet built; "
        "put processes in with `penstock run w -- COMMAND`",
        "w:9:5: warning: `except` of lan is understood, not yet enforced; until then the whole rule is denied",
        "w:13:5: warning: `except` beside `workload:w` is understood, not yet enforced; "
        "until then `workload:w` is denied: give it a rule of its own",
        "w:14:5: warning: `except` beside `lan` is understood, not yet enforced; "
        "until then `lan` is denied: give it a rule of its own",
        "w:15:5: warning: `except` beside `plane:inference` by interface is understood, not yet enforced; "
        "until then `plane:inference` by interface is denied: give it a rule of its own",
    ]
