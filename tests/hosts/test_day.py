"""From `protect` to `enforce` on a booted host without a rule written by hand: a day of real work, what `suggest`
makes of it, and the same day again. A real llama-server, and a stand-in for vLLM that downloads and calls about.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest

from hosts import installed
from hosts.host import Host
from hosts.hub import BUNDLE, HUB, REPOSITORY, STORAGE, Hub, trusted_by_llama
from hosts.installed import Installed
from hosts.llama import UNIT as LLAMA
from hosts.llama import ask, complete, fetch_model, install_llama, wait_serving
from hosts.outside import STRANGER
from hosts.world import World

VLLM_PORT, DATABASE, LLAMA_PORT = 8000, 5432, 8080
SERVER = """\
#!/usr/bin/python3 -S
import socket, sys
listener = socket.create_server(("::", int(sys.argv[3])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    with listener.accept()[0] as caller:
        caller.sendall(caller.recv(64))
"""
UNIT = "[Service]\nUser=model\nExecStart=/usr/local/bin/vllm serve --port 8000\n"
HOST = """\
version: 1
networks:
  clients: {cidr: [198.18.1.0/24, "fd00:1::/64"], plane: inference}
"""
TELEMETRY = "stats.vllm.ai"
OURS = {"192.0.2.1", "2001:db8::1", "198.51.100.1", "203.0.113.1"}


@dataclass
class Day:
    """A host with two servers, another one beside it, and the look-alike of a hub outside."""

    world: World
    at: Installed
    client: Host
    hub: Hub

    @property
    def host(self) -> Host:
        return self.at.host

    def in_vllm(self, *argv: str) -> int:
        """Run a program as a child of vLLM; its status."""
        cgroup = self.at.show("vllm.service", "ControlGroup")[0].lstrip("/")
        return self.host.run(list(argv), cgroup=cgroup, check=False, env={"SSL_CERT_FILE": BUNDLE}).returncode

    def work(self) -> dict[str, Any]:
        """What a day brings, twice, a minute apart at least in the log; what came of it the second time."""
        for _ in range(2):
            found = self.once()
        return found

    def once(self) -> dict[str, Any]:
        curl = ["curl", "-sS", "-m5", "-o/dev/null"]
        done: dict[str, Any] = {"complete": complete(self.host, "127.0.0.1").status}
        done["health"] = ask(self.host, "::1", "/health").status
        for family in "46":
            for name in (HUB, STORAGE):
                done[f"{name} {family}"] = self.in_vllm(*curl, f"-{family}", f"https://{name}/")
        for address in self.client.addresses:
            done[f"database {address}"] = self.in_vllm("python3", "-c", CONNECT, address, str(DATABASE))
        for address in ("127.0.0.1", "::1"):
            done[f"model {address}"] = self.host.tcp(address, VLLM_PORT).outcome
        return done

    def misbehave(self) -> dict[str, Any]:
        """What nobody wants, and no rule shall come of; 0 or "ok" is success."""
        curl = ["curl", "-sS", "-m3", "-o/dev/null"]
        places = [
            f"https://{TELEMETRY}/",
            "http://169.254.169.254/",
            *(f"http://{_bracketed(a)}/" for a in STRANGER),
        ]
        found: dict[str, Any] = {place: self.in_vllm(*curl, place) for place in places}
        fetch_model(self.host, "127.0.0.1", REPOSITORY)  # nobody asks for a password
        for address in self.host.addresses:
            found[f"model {address}"] = self.client.tcp(address, LLAMA_PORT).outcome
        return found

    def penstock(self, *words: str) -> str:
        return self.host.run(["penstock", *words]).stdout

    def blocks(self, verdict: str, since: float) -> list[dict[str, Any]]:
        lines = self.penstock("blocks", "--json").splitlines()
        found = [json.loads(line) for line in lines]
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
        return [one for one in found if one["verdict"] == verdict and one["last"] >= when]

    def suggested(self, workload: str) -> list[str]:
        """Write what is suggested, apply it, and say what it was."""
        said = json.loads(self.penstock("suggest", workload, "--write", "--json"))
        self.penstock("apply")
        return [one["yaml"] for one in said["proposed"]]


CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture(scope="module")
def day(full: None, world: World) -> Day:
    """Both are protected, and only observed."""
    hub = Hub(world, names=[TELEMETRY])
    world.outside.names({TELEMETRY: STRANGER})
    at = installed.boot(world, "inference", "bookworm")
    client = world.boot("client", "bookworm")
    made, host = Day(world, at, client, hub), at.host
    hub.trusted_by(host)
    install_llama(host, start=False)
    trusted_by_llama(host)
    host.sh("useradd --system model")
    host.write("/usr/local/bin/vllm", SERVER, 0o755)
    host.write("/etc/systemd/system/vllm.service", UNIT)
    client.write("/usr/local/bin/db", SERVER, 0o755)
    client.write("/etc/systemd/system/db.service", f"[Service]\nExecStart=/usr/local/bin/db a b {DATABASE}\n")
    client.sh("systemctl daemon-reload; systemctl start db")
    host.write("/etc/penstock/penstock.yaml", HOST)
    host.sh(f"systemctl daemon-reload; systemctl start vllm {LLAMA}")
    wait_serving(host)
    for unit in ("vllm.service", LLAMA):
        made.penstock("protect", unit)
    made.penstock("apply")
    host.sh(f"systemctl restart vllm {LLAMA}")
    wait_serving(host)
    at.wait_for(lambda: at.workload("vllm")["enrolment"] == at.workload("llama-server")["enrolment"] == "slice")
    return made


def test_no_rule_is_written_by_hand_and_nothing_is_missing(day: Day) -> None:
    before = day.work()
    assert set(before.values()) <= {0, 200, "ok"}, before
    day.misbehave()
    day.at.wait_for(lambda: any(b["port"] == DATABASE for b in day.blocks("would-deny", 0)))
    first = [*day.suggested("vllm"), *day.suggested("llama-server")]
    again = day.suggested("llama-server") + day.suggested("vllm")
    assert again == []
    told = "\n".join(first)
    assert f"ports: [{DATABASE}]" in told
    assert f"- ports: [{VLLM_PORT}]\n  from: host" in told
    assert not [word for word in (TELEMETRY, "169.254", *STRANGER, "clients") if word in told], told

    for workload in ("llama-server", "vllm"):
        said = json.loads(day.penstock("enforce", workload, "--json"))
        assert said["enforced"], said
        denied = [one for one in said["probes"] if one["expect"] == "denied"]
        assert [one["proven"] for one in denied] == [True, True], said
        assert said["would_deny"], "what nobody wants was seen"

    start = time.time()
    day.host.sh(f"systemctl restart vllm {LLAMA}")
    wait_serving(day.host)
    assert day.work() == before
    time.sleep(3)  # the log has it by then, if there is anything
    wrong = [b for b in day.blocks("deny", start) if b["address"] not in OURS]
    assert wrong == [], wrong


def test_what_nobody_wants_is_refused(day: Day) -> None:
    mark, before = day.world.outside.mark(), len(day.hub.requests())
    tried = day.misbehave()
    assert not {0, "ok"} & set(tried.values()), tried
    assert [p for p in day.world.outside.seen(day.host.name, since=mark) if p.destination in STRANGER] == []
    assert day.hub.requests()[before:] == []
