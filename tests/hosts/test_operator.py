"""The operator's day on a booted host: protect, observe, suggest, enforce, an attack, and a call at 3 am.

Two servers are governed, one that pulls models as Ollama does and one that calls about as vLLM does, and no rule
is written by hand.  What they reach is counted at the far side, over IPv4 and IPv6.  Each test goes on from where
the one before it ended.
"""

from __future__ import annotations

import json
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from hosts import installed
from hosts.host import Host
from hosts.hub import AT_HUB, AT_STORAGE, HUB, Hub, give_addresses
from hosts.installed import Installed
from hosts.outside import REGISTRY, STRANGER
from hosts.servers import OLLAMA, VLLM, install_servers, pull, see, wait_servers
from hosts.vllm_program import MODEL
from hosts.world import World

REGISTRY_NAME = "registry.ollama.ai"  # here it has an IPv4 address alone, and the blobs IPv6: each is a family's
BLOBS_NAME = "dd20bb891979d25aebc8bec07b2b3bbc.r2.cloudflarestorage.com"
TELEMETRY = "stats.vllm.ai"
AT_TELEMETRY = ("203.0.113.40", "2001:db8:5::40")
STORE = 5000
"""A store that the vLLM-like server reads, on another host: a literal address."""
NETWORKS = """\
version: 1
networks:
  office: {cidr: [198.18.1.0/24, "fd00:1::/64"], plane: inference}
"""
OURS = {"192.0.2.1", "2001:db8::1"}
"""What `enforce` tries, and must see denied."""
WORKLOADS = ("ollama", "vllm")


@dataclass
class Day:
    """The host with both servers, the host of their clients, and the hub outside."""

    world: World
    at: Installed
    client: Host
    hub: Hub
    worked: dict[str, str] = field(default_factory=dict)
    """What the first traffic came to."""

    @property
    def host(self) -> Host:
        return self.at.host

    def traffic(self) -> dict[str, str]:
        """What clients do on any day; each answer was made from what a server fetched meanwhile."""
        v4, v6 = self.host.addresses
        done = {
            "pull 4": pull(self.client, v4, f"{REGISTRY_NAME}:443/library/tiny"),
            "pull 6": pull(self.client, v6, f"{BLOBS_NAME}:443/library/tiny"),
        }
        for family, here, store in zip((4, 6), self.host.addresses, self.client.addresses, strict=True):
            done[f"model {family}"] = see(self.client, here, MODEL, family)
            done[f"store {family}"] = see(self.client, here, f"http://{far(store)}:{STORE}/", family)
        return done

    def attack(self) -> dict[str, str]:
        """What anybody may ask of either server, and nobody should: to call a stranger, and for credentials."""
        v4, v6 = self.host.addresses
        metadata = "http://169.254.169.254/latest/meta-data/"
        asked = {f"pull {a}": partial(pull, self.client, v4, f"{far(a)}:443/evil/tiny") for a in STRANGER}
        for a in STRANGER:
            asked[f"image {a}"] = partial(see, self.client, v6, f"http://{far(a)}/", 6 if ":" in a else 4)
        asked["metadata"] = partial(see, self.client, v4, metadata, 4)
        # All at once: while nothing is refused, each of those at the vLLM waits for an answer that never comes.
        with ThreadPoolExecutor(len(asked)) as pool:
            coming = {what: pool.submit(ask) for what, ask in asked.items()}
        return {what: came.result() for what, came in coming.items()}

    def arrived(self, since: int) -> dict[str, int]:
        """New connections of the host that went out on its cable, by destination."""
        found: dict[str, int] = {}
        for packet in self.world.outside.seen(self.host.name, since=since, opens=True):
            found[packet.destination] = found.get(packet.destination, 0) + 1
        return found

    def run(self, *words: str, status: int = 0) -> str:
        """What `penstock WORDS` prints."""
        done = self.host.run(["penstock", *words], check=False)
        assert done.returncode == status, (words, done)
        return done.stdout

    def blocks(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run("blocks", "--json", *words).splitlines()]

    def until_told(self, workload: str, addresses: set[str]) -> None:
        """Wait until the log has something of each."""
        asked = ("--workload", workload)
        self.at.wait_for(lambda: addresses <= {str(one["address"]) for one in self.blocks(*asked)})

    def denied_since(self, start: float) -> list[dict[str, Any]]:
        when = datetime.fromtimestamp(start, UTC).isoformat()
        return [one for one in self.blocks() if one["verdict"] == "deny" and one["last"] >= when]


def far(address: str) -> str:
    """As a URL has it."""
    return f"[{address}]" if ":" in address else address


@pytest.fixture(scope="module")
def day(world: World) -> Day:
    """Installed, both servers run, and nothing is governed."""
    hub = Hub(world, names=[TELEMETRY])
    give_addresses(world, AT_TELEMETRY)
    names = {TELEMETRY: AT_TELEMETRY, REGISTRY_NAME: REGISTRY[:1], BLOBS_NAME: REGISTRY[1:]}
    world.outside.names(names)
    at = installed.boot(world, "inference", "bookworm")
    client = world.boot("client", "bookworm")
    store = f"[Service]\nExecStart=/usr/bin/python3 -m http.server {STORE} --bind :: --directory /srv\n"
    client.write("/etc/systemd/system/store.service", store)
    client.sh("systemctl daemon-reload; systemctl start store")
    hub.trusted_by(at.host)
    install_servers(at.host)
    at.host.write("/etc/penstock/penstock.yaml", NETWORKS)
    return Day(world, at, client, hub)


def test_what_is_observed_works_and_is_written_down(day: Day) -> None:
    for unit in (OLLAMA, VLLM):
        day.run("protect", unit)
    day.run("apply")
    day.host.sh(f"systemctl restart {OLLAMA} {VLLM}")
    wait_servers(day.host)
    day.at.wait_for(lambda: {day.at.workload(name)["enrolment"] for name in WORKLOADS} == {"slice"})
    mark = day.world.outside.mark()
    day.worked = day.traffic()
    assert day.worked == {key: "success" if "pull" in key else "200" for key in day.worked}
    attacked = day.attack()
    # The control: observed, the attack succeeds.
    assert {attacked[f"pull {a}"] for a in STRANGER} == {"success"}
    seen = day.arrived(mark)
    assert set(AT_HUB) | set(AT_STORAGE) | set(REGISTRY) | set(STRANGER) | set(day.client.addresses) <= set(seen)
    told = {*STRANGER, "169.254.169.254", *AT_TELEMETRY, *day.client.addresses}
    for workload, wanted in (("vllm", told), ("ollama", {*STRANGER, *day.client.addresses})):
        day.until_told(workload, wanted)
    assert {one["verdict"] for one in day.blocks()} == {"would-deny"}


def test_what_is_suggested_is_what_it_needs_and_nothing_unwise(day: Day) -> None:
    # From `host`, too: that they serve was asked there.
    wanted = {
        "ollama": [f"- ports: [11434]\n  from: {who}" for who in ("host", "office")],
        "vllm": [
            *(f"- to: {quoted(a)}\n  ports: [{STORE}]" for a in day.client.addresses),
            *(f"- ports: [8000]\n  from: {who}" for who in ("host", "office")),
        ],
    }
    refused: dict[str, dict[str, str]] = {}
    for workload in WORKLOADS:
        said = json.loads(day.run("suggest", workload, "--write", "--json"))
        assert sorted(one["yaml"] for one in said["proposed"]) == sorted(wanted[workload])
        assert said["written"] == len(wanted[workload])
        refused[workload] = {
            end: one["code"]
            for one in said["refused"]
            for seen in one["seen"]
            for end in (seen["name"], *seen["addresses"])
        }
    assert {refused[name][a] for name in WORKLOADS for a in STRANGER} == {"seen-once"}
    assert refused["vllm"][TELEMETRY] == "telemetry"
    assert refused["vllm"]["169.254.169.254"] == "metadata"
    assert day.run("plan").count("+ ingress") == 4
    day.run("apply")
    for workload in WORKLOADS:
        assert json.loads(day.run("suggest", workload, "--json"))["proposed"] == []


def quoted(address: str) -> str:
    """As YAML wants it."""
    return f'"{address}"' if ":" in address else address


def test_enforced_by_proof_and_not_one_false_block(day: Day) -> None:
    for workload in WORKLOADS:
        said = json.loads(day.run("enforce", workload, "--confirm", "60s", "--json"))
        assert said["enforced"]
        assert said["confirm_until"] is not None
        proofs = [(one["expect"], one["proven"]) for one in said["probes"]]
        assert proofs == [("denied", True)] * 2 + [("allowed", True)] * (2 if workload == "vllm" else 0)
        assert not {one["name"] for one in said["would_deny"]} & {REGISTRY_NAME, BLOBS_NAME, HUB}
        day.run("confirm")
    assert day.at.enforcing(*WORKLOADS)
    day.host.sh(f"systemctl restart {OLLAMA} {VLLM}")
    wait_servers(day.host)

    mark, start = day.world.outside.mark(), time.time()
    assert day.traffic() == day.worked
    seen = day.arrived(mark)
    needed = {*REGISTRY, *AT_HUB, *AT_STORAGE, *day.client.addresses}
    assert {address: seen.get(address, 0) >= 1 for address in needed} == dict.fromkeys(needed, True)
    assert set(seen) == needed  # the telemetry of the vLLM-like server goes on trying
    day.at.wait_for(lambda: any(one["name"] == TELEMETRY for one in day.denied_since(start)))
    false = [one for one in day.denied_since(start) if one["name"] != TELEMETRY and one["address"] not in OURS]
    assert false == []


def test_the_attack_is_refused(day: Day) -> None:
    mark, start = day.world.outside.mark(), time.time()
    came = day.attack()
    assert all("refused" in said.lower() for said in came.values()), came
    assert day.arrived(mark) == {}
    gone = {p.destination for p in day.world.outside.seen(day.host.name, since=mark)}
    assert not gone & {*STRANGER, "169.254.169.254", *AT_TELEMETRY}
    told = {*STRANGER, "169.254.169.254"}
    day.at.wait_for(lambda: told <= {one["address"] for one in day.denied_since(start)})


def test_at_3_am_the_line_that_is_printed_helps_and_ends(day: Day) -> None:
    addresses = {}
    day.at.wait_for(lambda: STRANGER[1] in {one["address"] for one in day.blocks("--since", "5m")})
    lines = [line.strip() for line in day.run("blocks", "--since", "5m", "--workload", "ollama").splitlines()]
    for address in STRANGER:
        (line,) = {line for line in lines if f"grant ollama {far(address)}:443" in line}
        addresses[address] = line[line.index("penstock grant") :]
        day.run("why", "ollama", f"{far(address)}:443", status=1)
    exactly, short = (addresses[address] for address in STRANGER)
    made = day.host.run(shlex.split(exactly)).stdout
    day.run("why", "ollama", f"{STRANGER[0]}:443")
    assert pull(day.client, day.host.v4, f"{STRANGER[0]}:443/any/tiny") == "success"
    day.run("revoke", made.split()[0])
    day.run("why", "ollama", f"{STRANGER[0]}:443", status=1)

    before = time.time()
    day.host.run(shlex.split(short.replace("--for 8h", "--for 4s")))
    assert pull(day.client, day.host.v4, f"{far(STRANGER[1])}:443/any/tiny") == "success"
    day.at.wait_for(lambda: json.loads(day.run("grants", "--json"))["grants"] == [])
    assert time.time() >= before + 3
    mark = day.world.outside.mark()
    for address in STRANGER:
        assert "refused" in pull(day.client, day.host.v4, f"{far(address)}:443/any/tiny")
    assert day.arrived(mark) == {}


def test_after_a_lock_it_works_as_before(day: Day) -> None:
    locked = json.loads(day.run("lock", "vllm", "--reason", "a look at it", "--for", "1h", "--json"))
    assert see(day.client, day.host.v4, MODEL, 4) != "200"
    day.run("revoke", locked["grant"]["id"])
    day.at.wait_for(lambda: day.at.enforcing(*WORKLOADS))
    assert day.traffic() == day.worked


def test_over_a_boot_the_rules_hold_and_what_was_lent_is_over(day: Day) -> None:
    """`test_grants` has what is left of a grant over a boot."""
    lent = ["grant", "ollama", f"{STRANGER[0]}:443", "--for", "3s", "--reason", "until the boot"]
    until = json.loads(day.run(*lent, "--json"))["grant"]["until"]
    mark = day.world.outside.mark()
    day.host.power_off()
    time.sleep(max(0.0, datetime.fromisoformat(until).timestamp() - time.time()))
    day.host.power_on()
    wait_servers(day.host)
    day.at.wait_for(lambda: day.at.enforcing(*WORKLOADS), 30)
    assert all("refused" in said.lower() for said in day.attack().values())
    assert day.traffic() == day.worked
    gone = {p.destination for p in day.world.outside.seen(day.host.name, since=mark)}
    assert not gone & {*STRANGER, *AT_TELEMETRY}
    for address in STRANGER:
        day.run("why", "ollama", f"{far(address)}:443", status=1)
