"""The README's second example, done as it stands on a fresh host, and each sentence of it tried, from outside and
from inside: a real llama-server behind a real nginx, clients, administrators, strangers, and who else is there.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hosts import bundle, llama
from hosts.callers import reach
from hosts.host import SCOPE, Host
from hosts.hub import give_addresses
from hosts.installed import Installed, image
from hosts.llama import HUB, MODEL, Answer, install_llama
from hosts.matrix import NOBODY, Listener, Matrix, Source, wrong
from hosts.outside import DNS, REGISTRY, STRANGER
from hosts.probe import install_probe
from hosts.world import World
from test_documents import SECOND_EXAMPLE, below

CLIENT, ADMIN = ("10.30.4.4", "fd00:30::4"), ("10.20.0.4", "fd00:20::4")
GATEWAY, SERVER, SSH, PAGE, GREEDY_PORT = 443, llama.PORT, 22, 80, 7100
SOURCES: dict[str, set[int]] = {
    "client": {GATEWAY},
    "admin": {SSH},
    "stranger": {SSH},
    "nginx": {SERVER, GATEWAY, PAGE},
    "llama-server": {SERVER},
    "greedy": {GREEDY_PORT},
    "nobody": {SSH},
}
"""Who reaches what."""
CLOSED = ("/models", "/slots", "/props", "/", "/v1/../models", "/v1/%2e%2e/models", "/v1/..%2fprops", "/v10")
FAMILIES = (4, 6)
SUDO = '#!/bin/sh\nexec "$@"\n'
GREEDY = """\
version: 1
workload: greedy
mode: enforce
match: {unit: greedy.service}
egress: [{to: any, ports: [any]}]
ingress: []
"""
"""A workload with all that its own rules can open."""
NUMBERS = itertools.count()


def steps() -> list[str]:
    """The shell commands of that section."""
    found = below("README", SECOND_EXAMPLE)
    return [line for fence in found if fence.kind == "sh" for line in fence.text.splitlines()]


def files() -> dict[str, str]:
    """Its files, by their path."""
    found = (fence.text.partition("\n") for fence in below("README", SECOND_EXAMPLE) if fence.kind == "yaml")
    return {path.removeprefix("# "): text for path, _, text in found}


def asked(
    address: str, path: str, key: str, body: Mapping[str, Any] | None, source: str, port: int = GATEWAY
) -> Answer:
    """A request over TLS from that address, and what was answered."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    where = (source, 0) if source else None
    connection = http.client.HTTPSConnection(address, port, timeout=20, context=context, source_address=where)
    try:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        content = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, content, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(1 << 20).decode(errors="replace"))
    except OSError as error:
        return Answer(0, f"{type(error).__name__}: {error}")
    finally:
        connection.close()


@dataclass
class Set:
    """The host with everything on it, and who calls."""

    world: World
    host: Host
    at: Installed
    key: str = ""
    greedy: str = ""
    """The cgroup of another workload, once there is one."""

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Addresses of the host, as seen from itself."""
        return ("127.0.0.1", "127.0.0.7", "::1", *self.host.addresses)

    def cgroup(self, unit: str) -> str:
        """Where its processes are."""
        return self.at.show(unit, "ControlGroup")[0].lstrip("/")

    def outside(self, who: tuple[str, str], family: int, port: int) -> str:
        """What comes of a connection from there."""
        here = self.host.address(family)
        return self.world.lab.host.call(reach, here, port, who[family == 6])

    def inside(self, cgroup: str, address: str, port: int) -> str:
        """What comes of a connection by a process in that cgroup."""
        return self.host.call_in(cgroup, reach, address, port)

    def client(self, family: int, path: str, key: str = "", body: Mapping[str, Any] | None = None) -> Answer:
        """A client's request to the gateway."""
        source = CLIENT[family == 6]
        return self.world.lab.host.call(asked, self.host.address(family), path, key, body, source)

    def by_nginx(self, address: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """A request to the model server by a process of nginx's workload that somebody has taken over."""
        return self.host.call_in(self.cgroup("nginx.service"), llama._ask, address, path, body, 20)

    def told_to_call(self, tell: Any, family: int) -> bool:
        """Whether the server sends anything when `tell` has it fetch a model: to the stranger, or for its name."""
        there = STRANGER[family == 6]
        self.world.outside.names({HUB: [there]})
        mark = self.world.outside.mark()
        tell({"model": f"someone/{next(NUMBERS)}"})
        time.sleep(0.5)  # what is not refused at once is under way by now
        return any(self.world.outside.seen(self.host.name, to=far, since=mark) for far in (there, *DNS))


def before(made: Set) -> None:
    """All is open at first: without this the rest would show nothing."""
    for family in FAMILIES:
        for who in (CLIENT, ADMIN, STRANGER):
            assert [made.outside(who, family, port) for port in (SERVER, SSH, PAGE)] == ["ok"] * 3
        address = "::1" if family == 6 else "127.0.0.1"
        assert made.told_to_call(lambda body, at=address: llama.ask(made.host, at, "/models", body), family)
    for address in made.everywhere:
        assert made.inside(SCOPE, address, SERVER) == "ok"


@pytest.fixture(scope="module")
def made(world: World, release: str) -> Set:
    """A host of that release on which the section was done."""
    if not world.hosts:
        give_addresses(world, [*CLIENT, *ADMIN])
    host = world.boot(f"gw-{release}", release, image=image(release))
    place = bundle.put(host, place="/home/penstock")
    install_llama(host)
    host.run(["systemctl", "enable", "--now", "nginx.service"])
    install_probe(host, "ssh.service", port=SSH)
    host.write("/usr/local/bin/sudo", SUDO, 0o755)
    found = Set(world, host, Installed(world, host))
    before(found)
    host.write("/root/steps", "".join(f"{line}; echo status $?\n" for line in steps()))
    done = host.run(["bash", "/root/steps"], cwd=place, timeout=120)
    assert re.findall(r"^status (\d+)$", done.stdout, re.MULTILINE) == ["0"] * len(steps()), done
    for path, text in files().items():
        assert re.sub(r"(?m)^#.*\n", "", host.read(path)) == text
    found.at.wait_for(lambda: found.at.enforcing("nginx", "llama-server"))
    assert {found.at.workload(name)["enrolment"] for name in ("nginx", "llama-server")} == {"slice"}
    found.key = host.read("/etc/nginx/gateway/keys").split()[1].rstrip('"')
    found.host.wait_until(lambda: found.by_nginx("127.0.0.1", "/health").status == 200, timeout=30)
    return found


def complete(made: Set, family: int) -> Answer:
    """Eight tokens for a client; the first request has the model loaded."""
    body, deadline = {"model": MODEL, "prompt": "water", "n_predict": 8, "ignore_eos": True}, time.monotonic() + 30
    while (answer := made.client(family, "/v1/completions", made.key, body)).status in (400, 503):
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_clients_use_the_model_with_a_key(made: Set, family: int) -> None:
    answer = complete(made, family)
    assert (answer.status, answer.json()["usage"]["completion_tokens"]) == (200, 8)
    assert made.client(family, "/health").status == 200
    for key in ("", "x" * len(made.key), made.key[:-1]):
        assert made.client(family, "/v1/models", key).status == 401
    for path in CLOSED:
        assert made.client(family, path, made.key).status == 403, path
    assert made.client(family, "/models", made.key, {"model": "someone/else"}).status == 403


@pytest.mark.parametrize("family", FAMILIES)
def test_clients_reach_nothing_else(made: Set, family: int) -> None:
    assert made.outside(CLIENT, family, GATEWAY) == "ok"
    assert made.inside(made.cgroup("nginx.service"), made.host.address(family), PAGE) == "ok", "nginx is there"
    assert made.outside(CLIENT, family, PAGE) == "ECONNREFUSED"
    assert made.outside(CLIENT, family, SERVER) == "ECONNREFUSED"
    for who in (ADMIN, STRANGER):
        assert [made.outside(who, family, port) for port in (GATEWAY, SERVER)] == ["ECONNREFUSED"] * 2


def test_only_nginx_reaches_the_model_server(made: Set) -> None:
    greedy(made)
    for address in made.everywhere:
        assert made.by_nginx(address, "/health").status == 200, address
        for cgroup in (SCOPE, made.cgroup("ssh.service"), made.greedy):
            assert made.inside(cgroup, address, SERVER) == "ECONNREFUSED", (cgroup, address)
    assert made.inside(made.greedy, REGISTRY[0], GATEWAY) == "ok", "its own rules let it out"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_server_calls_nobody(made: Set, family: int) -> None:
    address = "::1" if family == 6 else "127.0.0.1"
    assert not made.told_to_call(lambda body: made.by_nginx(address, "/models", body), family)
    assert not made.told_to_call(lambda body: made.client(family, "/v1/models", made.key, body), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_nginx_calls_the_model_server_alone(made: Set, family: int) -> None:
    nginx, mark = made.cgroup("nginx.service"), made.world.outside.mark()
    there = REGISTRY[family == 6]
    assert made.inside(nginx, there, GATEWAY) == "ECONNREFUSED"
    assert made.world.outside.seen(made.host.name, to=there, since=mark) == []
    assert made.inside(SCOPE, there, GATEWAY) == "ok", "the control"
    listening = install_probe(made.host, "bystander.service", port=7300).port
    for address in made.everywhere:
        assert made.inside(nginx, address, listening) == "ECONNREFUSED"
        assert made.inside(SCOPE, address, listening) == "ok"


@pytest.mark.parametrize("family", FAMILIES)
def test_port_22_is_for_administrators(made: Set, family: int) -> None:
    assert made.outside(ADMIN, family, SSH) == "ok"
    assert made.outside(STRANGER, family, SSH) == "ok"
    assert made.outside(CLIENT, family, SSH) == "ECONNREFUSED"


def test_port_22_is_for_no_workload(made: Set) -> None:
    greedy(made)
    for address in made.everywhere:
        assert made.inside(SCOPE, address, SSH) == "ok"
        for cgroup in (made.cgroup("nginx.service"), made.cgroup(llama.UNIT), made.greedy):
            assert made.inside(cgroup, address, SSH) == "ECONNREFUSED", (cgroup, address)


def test_the_whole_matrix(made: Set) -> None:
    """Each of the ports from each of the sources, against the evaluator."""
    greedy(made)
    units = {"nginx": "nginx.service", "llama-server": llama.UNIT, "greedy": "greedy.service"}
    inside = [Source(name, cgroup=made.cgroup(unit), workload=name) for name, unit in units.items()]
    outside = [Source("client", CLIENT), Source("admin", ADMIN), Source("stranger", STRANGER)]
    owners = {SERVER: "llama-server", GATEWAY: "nginx", PAGE: "nginx", SSH: NOBODY, GREEDY_PORT: "greedy"}
    listeners = [Listener(owner, port) for port, owner in owners.items()]
    rules = {path.removeprefix("/etc/penstock/"): text for path, text in files().items()}
    rules["rules.d/greedy.yaml"] = GREEDY
    matrix = Matrix(made.world, made.host, rules, [*outside, *inside, Source("nobody")], listeners, ["tcp"])
    outcomes = matrix.outcomes()
    assert len(outcomes) == 5 * (3 * 2 + 4 * 4)
    assert not wrong(outcomes), wrong(outcomes)
    reached = {name: {one.cell.port for one in outcomes if one.source == name and one.reached} for name in SOURCES}
    assert reached == SOURCES


def test_who_was_refused_is_told(made: Set) -> None:
    """By `blocks`: a line a source, about the server that it did not reach."""
    for family in FAMILIES:
        assert made.outside(CLIENT, family, SERVER) == "ECONNREFUSED"

    def told() -> bool:
        lines = made.host.run(["penstock", "blocks", "--direction", "in", "--json"]).stdout.splitlines()
        about = [block for line in lines if (block := json.loads(line))["workload"] == "llama-server"]
        return set(CLIENT) <= {block["address"] for block in about if block["port"] == SERVER}

    made.at.wait_for(told)


@pytest.mark.parametrize("verb", ["reload", "restart", "upgrade"])
def test_the_gateway_keeps_its_right(made: Set, verb: str) -> None:
    """Also its new processes, and those of a new version; and who takes its port meanwhile has none."""
    if verb == "upgrade":  # as a package manager does it: another file under the same name
        path, new = "/usr/sbin/nginx", "/usr/sbin/nginx.dpkg-new"
        made.host.sh(f"cp {path} {new}; printf x >>{new}; mv {new} {path}")
        verb = "restart"
    made.host.run(["systemctl", "reset-failed", "nginx.service"])  # so many starts are too many for systemd
    made.host.run(["systemctl", verb, "nginx.service"])
    made.host.wait_until(lambda: serves(made))
    made.host.run(["systemctl", "stop", "nginx.service"])
    try:
        for address in made.everywhere:
            assert made.host.call_in(SCOPE, as_the_gateway, address) == "ECONNREFUSED"
    finally:
        made.host.run(["systemctl", "start", "nginx.service"])
    made.host.wait_until(lambda: serves(made))


def serves(made: Set) -> bool:
    """Whether a client gets something from the model server, in both families."""
    return all(made.client(family, "/v1/models", made.key).status == 200 for family in FAMILIES)


def as_the_gateway(address: str) -> str:
    """From a process that listens where the gateway did."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, GATEWAY), family=family):
        return reach(address, SERVER, address)


def greedy(made: Set) -> None:
    """A third workload, beside what the section says."""
    if not made.greedy:
        install_probe(made.host, "greedy.service", port=GREEDY_PORT, start=False)
        made.host.write("/etc/penstock/rules.d/greedy.yaml", GREEDY)
        made.host.sh("penstock protect greedy.service; penstock apply; systemctl start greedy.service")
        made.at.wait_for(lambda: made.at.enforcing("greedy", "nginx", "llama-server"))
        made.greedy = made.cgroup("greedy.service")
        assert Path(made.greedy).parts[:1] == ("penstock.slice",)
