"""Rules by name on booted hosts: real programs look up, download, connect, and are refused all else."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import cannot_run
from hosts import named
from hosts.hub import AT_HUB, AT_STORAGE, BUNDLE, HUB, MODEL, REPOSITORY, STORAGE, Hub, install_client
from hosts.llama import ask, fetch_model
from hosts.named import ALLOWED, BOOT_NAME, LEAVING, PORT, REFUSED, SHARED, Named
from hosts.outside import DNS, REGISTRY, STRANGER, WILD
from hosts.resolved import STUB, install_resolved
from hosts.resolvers import CLIENTS, MUSL, Found, has_musl, look_up
from hosts.world import World

FAMILIES = (4, 6)
NAMES = 10_000
"""Look-ups that are followed by a connection at once."""
FINAL = {
    "getent": "status 2",
    "curl": f"curl: (6) Could not resolve host: {REFUSED}",
    "python": "EAI_NONAME",
    "musl": "Name does not resolve",
}
"""What a person is told about a refused name; the others print the code, NXDOMAIN."""
QUICK, AT_ONCE = 1000, 200
"""Milliseconds that a program may take to look up, and that a look-up may take that nobody answers."""
TRIES = 3
"""Of these the quickest counts: whoever waits for an answer waits each time, and a busy machine does not."""

SNAPSHOT = "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1]))"


@pytest.fixture(scope="module")
def outside(world: World, request: pytest.FixtureRequest) -> tuple[Hub, list[str]]:
    """What the names lead to."""
    return named.outside(world, NAMES if request.config.getoption("--full") else NAMES // 10)


@pytest.fixture(scope="module")
def site(world: World, outside: tuple[Hub, list[str]], older_release: str) -> Iterator[Named]:
    """A host with rules by name."""
    made = named.on(world, older_release, *outside)
    yield made
    made.host.crash()


# --- downloads ---


def test_llama_server_downloads_from_the_hub_and_its_storage(site: Named) -> None:
    mark, before = site.world.outside.mark(), len(site.hub.requests())
    assert fetch_model(site.host, "127.0.0.1", REPOSITORY).status == 200

    def has_it() -> bool:
        got = {(r.name, r.method, r.status) for r in site.hub.requests()[before:]}
        return got >= {(HUB, "GET", 302), (STORAGE, "GET", 200)} and MODEL in site.host.sh("find /var/lib/llama")

    site.host.wait_until(has_it, timeout=30)
    models = ask(site.host, "127.0.0.1", "/models").json()["data"]
    assert any(model["id"].startswith(REPOSITORY) for model in models)
    assert {(p.destination, p.port) for p in site.left(mark)} <= {(a, 443) for a in (*AT_HUB, *AT_STORAGE)}


def test_huggingface_hub_downloads_from_an_environment_of_its_own(site: Named) -> None:
    try:
        python = install_client(site.host)
    except RuntimeError as error:
        cannot_run(str(error))
    mark, before = site.world.outside.mark(), len(site.hub.requests())
    argv = [python, "-c", SNAPSHOT, REPOSITORY]
    done = site.host.run(argv, cgroup=site.cgroup("llama-server"), env={"SSL_CERT_FILE": BUNDLE})
    assert "tiny" in site.host.sh(f"ls {done.stdout.strip()}/")
    assert (STORAGE, 200) in {(r.name, r.status) for r in site.hub.requests()[before:]}
    assert {(p.destination, p.port) for p in site.left(mark)} <= {(a, 443) for a in (*AT_HUB, *AT_STORAGE)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_server_reaches_its_names_and_nothing_else(site: Named, family: int) -> None:
    cgroup, index = site.cgroup("llama-server"), family == 6
    curl = ["curl", "-sS", f"-{family}", "-o/dev/null", "-m5", "-w%{remote_ip}"]
    for name, there in ((HUB, AT_HUB), (STORAGE, AT_STORAGE)):
        assert site.host.run([*curl, f"https://{name}/"], cgroup=cgroup).stdout == there[index]
    mark = site.world.outside.mark()
    elsewhere = [ALLOWED, *(f"[{a}]" if index else a for a in (REGISTRY[index], STRANGER[index]))]
    for place in elsewhere:
        for port in (443, 853):
            took: list[float] = []
            while not took or (len(took) < TRIES and took[-1] > QUICK / 1000):
                start = time.monotonic()
                done = site.host.run([*curl, f"http://{place}:{port}/"], cgroup=cgroup, check=False)
                assert done.returncode in (6, 7), (place, port, done)
                took.append(time.monotonic() - start)
            assert min(took) < QUICK / 1000, (place, port, took)
    assert site.left(mark) == []
    site.host.run([*curl, f"http://{ALLOWED}:443/"])  # the control: a bystander
    site.world.outside.wait_for(host=site.host.name, to=REGISTRY[index], port=443, since=mark, opens=True)


# --- look-ups ---


def quickest(site: Named, client: str, name: str) -> Found:
    """A look-up of the asker's."""
    for _ in range(TRIES):
        found = look_up(client, site.host, name, site.cgroup("asker"))
        if found.ms < QUICK:
            break
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_finds_its_names_and_is_told_of_others(site: Named, client: str) -> None:
    if client == "musl" and not has_musl():
        cannot_run("needs musl-gcc")
    mark = site.world.outside.mark()
    found = quickest(site, client, ALLOWED)
    if client == "curl":  # which prints the one that it reached
        assert found.addresses <= {*REGISTRY}, found
        assert found.addresses, found
    else:
        assert found.addresses == {*REGISTRY}, found
    assert found.ms < QUICK
    refused = quickest(site, client, REFUSED)
    assert (refused.addresses, refused.said) == (frozenset(), FINAL.get(client, "NXDOMAIN")), refused
    assert refused.ms < QUICK
    allowed = {(a, 443) for a in REGISTRY}
    assert {(p.destination, p.port) for p in site.left(mark)} <= allowed


@pytest.mark.parametrize("client", ["getent", "curl", "python", "dig", "dig +tcp", "musl"])
def test_who_is_not_governed_asks_as_before(site: Named, client: str) -> None:
    if client == "musl" and not site.host.exists(MUSL):
        cannot_run("needs musl-gcc")
    assert look_up(client, site.host, REFUSED).addresses & {*STRANGER}


def test_the_first_connection_after_an_answer_is_let_through(site: Named) -> None:
    order = ("first", PORT, *site.busy_names)
    (told,) = site.resolve("busy", order, timeout=600)
    print(f"{told['names']} look-ups: worst {told['worst']:.1f} ms, {told['ms'] / told['names']:.2f} ms each")
    assert (told["errors"], told["connected"]) == ({}, 2 * len(site.busy_names))


def test_what_one_looked_up_opens_nothing_for_another(site: Named) -> None:
    (answer,) = site.resolve("other", ("getaddrinfo", "shared.example"))
    assert set(answer["addresses"]) == {*SHARED}
    mark = site.world.outside.mark()
    for there in SHARED:
        assert site.probes["other"].tcp(there, PORT).outcome == "ok"
    site.world.outside.wait_for(host=site.host.name, to=SHARED[1], port=PORT, since=mark, opens=True)
    mark = site.world.outside.mark()
    for there in SHARED:
        assert site.probes["asker"].tcp(there, PORT).outcome == "ECONNREFUSED"
    assert site.left(mark) == []
    assert site.resolve("asker", ("getaddrinfo", "shared.example"))[0]["addresses"]
    for there in SHARED:
        assert site.probes["asker"].tcp(there, PORT).outcome == "ok"
        assert site.probes["asker"].tcp(there, 5000).outcome == "ECONNREFUSED"


@pytest.mark.parametrize("server", DNS)
def test_a_port_that_another_had_before_asks_whom_it_says(site: Named, server: str) -> None:
    """The kernel remembers a flow by its ports and addresses, and not by who sent it."""
    orders = [("raw", "udp", server, 53, REFUSED, "A", 1, own) for own in range(41000, 41006)]
    refused = ["NXDOMAIN"] * len(orders)
    assert [answer["rcode"] for answer in site.resolve("asker", *orders)] == refused
    assert [answer["addresses"] for answer in site.beside(*orders)] == [[STRANGER[0]]] * len(orders)
    assert [answer["rcode"] for answer in site.resolve("asker", *orders)] == refused
    assert [answer["rcode"] for answer in site.resolve("other", *orders)] == refused


def test_nobody_asks_a_listener_that_is_not_his(site: Named) -> None:
    """Not by its own address either: only what was diverted gets there."""
    text = site.host.sh("ss -Hlnu 'src 127.0.0.1 or src [::1]'; ss -Hlnt 'src 127.0.0.1 or src [::1]'")
    ports = {int(line.split()[3].rpartition(":")[2]) for line in text.splitlines()}
    listeners = [port for port in ports if port not in (8080, *range(7100, 7103))]
    assert len(listeners) >= 4, text
    orders = [
        ("raw", protocol, here, port, ALLOWED, "A", 0.3)
        for port in listeners
        for here in ("127.0.0.1", "::1")
        for protocol in ("udp", "tcp")
    ]
    for answers in (site.beside(*orders), site.resolve("asker", *orders), site.resolve("other", *orders)):
        assert {answer["rcode"] for answer in answers} == {""}, answers


# --- names that carry something out ---


def test_no_question_carries_anything_out_under_a_refused_name(site: Named) -> None:
    before, mark = site.questions(), site.world.outside.mark()
    label = secrets.token_hex(30)
    orders = [
        ("raw", protocol, DNS[0], 53, f"{label}.{n}.{zone}", kind)
        for n, kind in enumerate(("A", "TXT", "NULL", "ANY", "MX", "SRV", "HTTPS", "AXFR", "NAPTR", "CNAME"))
        for zone in ("tunnel.example", REFUSED, f"x{ALLOWED}")
        for protocol in ("udp", "tcp")
    ]
    answers = site.resolve("asker", *orders)
    assert {answer["rcode"] for answer in answers} <= {"NXDOMAIN", "REFUSED"}, answers
    assert site.asked(before) == []
    assert site.left(mark) == []
    site.beside(*orders[:2])
    assert [name for _, name in site.asked(before)] == [str(orders[0][4])] * 2, "the control: a bystander's"


def test_types_that_carry_much_are_not_asked_of_an_allowed_name(site: Named) -> None:
    before = site.questions()
    kinds = ("TXT", "NULL", "ANY", "MX", "SRV", "AXFR", "NAPTR", "PTR")
    names = (ALLOWED, f"a.{WILD}")
    answers = site.resolve("asker", *(("raw", "udp", DNS[0], 53, name, kind) for name in names for kind in kinds))
    assert {answer["answers"] for answer in answers} == {0}
    assert {answer["rcode"] for answer in answers} <= {"NOERROR", "REFUSED"}, answers
    assert site.asked(before) == []
    site.beside(("raw", "udp", DNS[0], 53, ALLOWED, "TXT"))
    assert site.asked(before) == [("TXT", ALLOWED)], "the control: a bystander's"


def test_new_names_under_a_wildcard_are_limited(site: Named) -> None:
    before, start = site.questions(), time.monotonic()
    names = [f"{secrets.token_hex(30)}.{n}.{WILD}" for n in range(400)]
    answers = site.resolve("asker", *(("raw", "udp", DNS[0], 53, name, "A") for name in names))
    allowance = 60 + 30 * ((time.monotonic() - start) / 60 + 1)
    asked = {name for _, name in site.asked(before)}
    print(f"of {len(names)} names the wildcard's owner saw {len(asked)} in {time.monotonic() - start:.1f} s")
    assert 30 <= len(asked) <= allowance
    assert {answer["rcode"] for answer in answers if not answer["addresses"]} == {"SERVFAIL"}
    assert site.resolve("asker", ("getaddrinfo", ALLOWED))[0]["addresses"], "other names go on"


def test_no_other_way_of_asking_leaves_the_host(site: Named) -> None:
    mark, before = site.world.outside.mark(), site.questions()
    ways = [
        (p, port) for p, port in (("udp", 53), ("tcp", 53), ("tcp", 853), ("udp", 853), ("tcp", 443), ("udp", 443))
    ]
    places = (*STRANGER, *DNS)
    orders = [("raw", p, there, port, REFUSED, "A", 0.3) for there in places for p, port in ways]
    orders += [
        ("raw", "udp", there, port, REFUSED, "A", 0.3)
        for there in ("224.0.0.251", "224.0.0.252")
        for port in (5353, 5355)
    ]
    answers = site.resolve("asker", *orders)
    assert not any(answer["addresses"] for answer in answers)
    assert site.left(mark) == []
    assert [p for p in site.world.outside.seen(site.host.name, since=mark) if p.port != 53] == []
    assert site.asked(before) == []
    site.beside(*orders[:6])  # the control
    assert {(p.protocol, p.port) for p in site.left(mark)} >= {*ways}


def test_programs_that_answer_over_a_socket_file_are_hidden(site: Named) -> None:
    places = ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/dbus/system_bus_socket")
    made = "import os,socket,sys\nfor p in sys.argv[1:]:\n os.makedirs(os.path.dirname(p), exist_ok=True)\n"
    made += " if not os.path.exists(p): socket.socket(socket.AF_UNIX).bind(p)"
    site.host.run(["python3", "-c", made, *places])
    site.probes["other"].systemctl("restart")
    try_ = "import os,socket,sys\nfor p in sys.argv[1:]:\n try: socket.socket(socket.AF_UNIX).connect(p)\n"
    # Nobody listens at ours, and nobody at what systemd puts over them, which has no permissions.
    try_ += " except ConnectionRefusedError:\n  if os.stat(p).st_mode & 0o777: print(p)\n"
    try_ += " except OSError: pass\n else: print(p)"
    reach = ["python3", "-c", try_, *places]
    assert site.host.run(reach).stdout.split() == [*places]
    pid = site.probes["other"].pid()
    site.host.run(["systemctl", "start", "other.service"])
    done = site.host.run(["nsenter", "-t", str(pid), "-m", "--", *reach], cgroup=site.cgroup("other"))
    assert done.stdout.split() == []


# --- what is told ---


def test_blocks_tell_of_the_name(site: Named) -> None:
    name = f"{secrets.token_hex(4)}.telling.example"
    site.probes["asker"].tcp(STRANGER[0], 5432)
    asked: list[dict[str, Any]] = []
    literal: list[dict[str, Any]] = []

    def told() -> bool:
        site.resolve("asker", ("getaddrinfo", name))  # again: of a flood, as above, only so many have names
        found = site.blocks("--workload", "asker", "--since", "2m")
        asked[:] = [one for one in found if one["name"] == name]
        literal[:] = [one for one in found if (one["address"], one["port"]) == (STRANGER[0], 5432)]
        return bool(asked and literal)

    site.host.wait_until(told)
    assert {one["text"] for one in asked} == {"not in its rules"}, asked
    assert all(one["text"].startswith("literal address, never looked up; ") for one in literal), literal
    assert {one["verdict"] for one in (*asked, *literal)} == {"deny"}


def test_a_refused_look_up_says_who_asked(site: Named) -> None:
    """As the only process of its user in the unit.  Not each time: it is answered after 50 ms, found or not."""
    asker = site.probes["asker"]
    own = {"pid": asker.pid(), "comm": "python3"}

    def told() -> bool:
        name = f"{secrets.token_hex(4)}.asked.example"
        assert asker.find(name).outcome == "EAI_NONAME"
        time.sleep(0.3)  # the next one of a busy host is not looked for
        blocks = site.blocks("--workload", "asker", "--since", "2m")
        return own in [block["process"] for block in blocks if (block["name"] or "").endswith(".asked.example")]

    site.host.wait_until(told)


# --- the daemon, its resolver, and changes ---


def held(site: Named, name: str, there: str) -> int:
    """A connection of the asker to that address, which it looked up by that name."""
    assert site.resolve("asker", ("getaddrinfo", name))[0]["addresses"]
    outcome = site.probes["asker"].tcp(there, PORT, hold=True)
    assert outcome.outcome == "ok"
    return outcome.id


def test_a_killed_resolver_is_there_again(site: Named) -> None:
    (pid,) = site.resolver()
    status = site.host.read(f"/proc/{pid}/status")
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert said["Uid"].split() == said["Gid"].split() == ["61100"] * 4
    assert {said[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
    assert (said["NoNewPrivs"], said["Groups"].strip()) == ("1", "")
    connection = held(site, ALLOWED, REGISTRY[0])
    site.host.run(["kill", "-KILL", str(pid)])
    took = site.wait_answered("asker", "later.example")
    print(f"look-ups go on {took:.2f} s after the resolver was killed")
    assert took < 2
    assert site.resolver() != [pid]
    assert site.probes["asker"].send(connection).outcome == "ok"


@pytest.mark.parametrize("how", ["stop", "kill --signal=KILL"])
def test_a_daemon_that_is_dead_opens_nothing_and_closes_nothing(site: Named, how: str) -> None:
    asker = site.probes["asker"]
    pooled = [held(site, ALLOWED, there) for there in REGISTRY]
    if how != "stop":  # which Restart= would end at once
        site.host.write("/run/systemd/system/penstock.service.d/stay.conf", "[Service]\nRestart=no\n")
        site.host.sh("systemctl daemon-reload")
    try:
        site.host.sh(f"systemctl {how} penstock.service")
        site.host.wait_until(lambda: site.resolver() == [])
        mark, before = site.world.outside.mark(), site.questions()
        assert [asker.send(id).outcome for id in pooled] == ["ok", "ok"]
        assert [asker.tcp(there, PORT).outcome for there in REGISTRY] == ["ok", "ok"]
        assert [asker.tcp(there, PORT).outcome for there in STRANGER] == ["ECONNREFUSED"] * 2
        for name in (ALLOWED, REFUSED, f"b.{WILD}"):
            answers = site.resolve("asker", *[("getaddrinfo", name)] * TRIES)
            assert not any(answer["addresses"] for answer in answers), answers
            assert min(answer["ms"] for answer in answers) < AT_ONCE, answers
        assert site.asked(before) == []
        assert {p.destination for p in site.left(mark)} == {*REGISTRY}
    finally:
        site.host.sh("rm -rf /run/systemd/system/penstock.service.d; systemctl daemon-reload")
        site.host.sh("systemctl start penstock.service")
    site.installed.wait_for(lambda: site.installed.enforcing("asker"))
    before = site.questions()
    assert [asker.send(id).outcome for id in pooled] == ["ok", "ok"]
    assert [asker.tcp(there, PORT).outcome for there in REGISTRY] == ["ok", "ok"], "without a new look-up"
    assert site.asked(before) == []
    assert site.wait_answered("asker", ALLOWED) < 2


def test_a_socket_that_is_kept_asks_the_next_daemon_as_well(site: Named) -> None:
    """The next one listens at another port."""
    go_on = f"/run/{secrets.token_hex(8)}"
    askers = [site.start("asker", ("again", DNS[0], go_on, name)) for name in (ALLOWED, REFUSED)]
    site.host.wait_until(lambda: all(site.host.exists(f"{go_on}.{name}") for name in (ALLOWED, REFUSED)))
    before = site.resolver()
    site.host.run(["systemctl", "restart", "penstock.service"])
    site.installed.wait_for(lambda: site.installed.enforcing("asker") and site.resolver())
    assert site.resolver() != before
    site.wait_answered("asker", ALLOWED)
    site.host.write(go_on, "")
    codes = [json.loads(asker.stdout.read())[0]["codes"] for asker in askers if asker.stdout]
    assert codes == [["NOERROR"] * 2, ["NXDOMAIN"] * 2]


def test_connections_end_with_the_rule_of_their_name(site: Named) -> None:
    stays = [held(site, ALLOWED, there) for there in REGISTRY]
    leaves = [held(site, "leaving.example", there) for there in LEAVING]
    asker = site.probes["asker"]
    assert {asker.send(id).outcome for id in (*stays, *leaves)} == {"ok"}
    site.asker_rules(leaving=False)
    try:
        site.host.run(["penstock", "apply"])
        mark = site.world.outside.mark()
        assert "ok" not in {asker.send(id).outcome for id in leaves}
        assert {asker.send(id).outcome for id in stays} == {"ok"}
        assert [asker.tcp(there, PORT).outcome for there in LEAVING] == ["ECONNREFUSED"] * 2
        assert not {p.destination for p in site.left(mark)} & {*LEAVING}
        assert site.resolve("asker", ("getaddrinfo", "leaving.example"))[0]["error"] == "EAI_NONAME"
    finally:
        site.asker_rules(leaving=True)
        site.host.run(["penstock", "apply"])


def test_look_ups_follow_the_name_servers_of_the_host(site: Named) -> None:
    before = site.host.read("/etc/resolv.conf")
    site.host.write("/etc/resolv.conf", f"nameserver {DNS[1]}\n")
    try:

        def follows() -> bool:
            mark = site.world.outside.mark()
            site.resolve(
                "other", ("getaddrinfo", f"{secrets.token_hex(4)}.example"), ("getaddrinfo", "shared.example")
            )
            asked = site.world.outside.seen(site.host.name, to=DNS[1], port=53, since=mark)
            return bool(asked)

        start = time.monotonic()
        site.host.wait_until(follows, timeout=10)
        print(f"followed after {time.monotonic() - start:.1f} s")
    finally:
        site.host.write("/etc/resolv.conf", before)


def test_no_look_up_gets_out_before_the_daemon_is_there(site: Named) -> None:
    """A governed unit that is started before it, and asks from then on."""
    site.host.run(["systemctl", "enable", "early.service"])
    site.host.power_off()
    mark, before = site.world.outside.mark(), site.questions()
    site.host.power_on()
    site.host.wait_until(lambda: site.early().get("allowed", 0) > 10)
    told = site.early()
    (since,) = site.installed.show("penstock.service", "ActiveEnterTimestampMonotonic")
    alone = int(since) / 1e6 - told["began"]
    print(f"asked for {alone:.2f} s before the daemon was ready: {told}")
    assert alone > 0
    assert told["failed"] > 0
    assert told["refused"] == 0
    assert BOOT_NAME not in {name for _, name in site.asked(before)}
    assert {p.destination for p in site.left(mark)} <= {*REGISTRY}
    site.host.run(["systemctl", "disable", "--now", "early.service"])


def test_systemd_resolved_is_no_way_around(site: Named) -> None:
    """Last: from here on the host asks its stub, and the stub asks who was asked before."""
    install_resolved(site.host)
    site.probes["asker"].systemctl("restart")
    before = site.questions()
    beside = site.beside(("getaddrinfo", REFUSED), ("varlink", REFUSED))
    assert [set(answer["addresses"]) for answer in beside] == [{*STRANGER}] * 2
    site.wait_answered("asker", ALLOWED)
    stub = ("raw", "udp", STUB, 53)
    orders = [("getaddrinfo", REFUSED), (*stub, ALLOWED, "A"), (*stub, REFUSED, "A"), ("varlink", ALLOWED)]
    refused, allowed, asked, varlink = site.resolve("asker", *orders)
    assert refused["error"] == "EAI_NONAME"
    assert (allowed["addresses"], asked["rcode"]) == ([REGISTRY[0]], "NXDOMAIN")
    assert varlink["error"] in ("FileNotFoundError", "PermissionError", "ConnectionRefusedError"), varlink
    assert ("A", f"{REFUSED}") in site.asked(before), "the control: the bystander's"
