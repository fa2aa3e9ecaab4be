"""What `status` says of open ports is what callers find; and who was refused is in `blocks`, by source."""

from __future__ import annotations

import json
import socket
import sys
import threading

import pytest

from daemon.running import Running
from governed import Actor, eventually
from penstock.core.wire import Json
from penstock.demo.lab import Lab
from penstock.demo.probe import tcp

pytestmark = pytest.mark.root

SERVED, INTERNAL, FORGOTTEN = 8000, 8001, 9090
HOST = "version: 1\nnetworks:\n  clients: {cidr: [%s], plane: inference}\n"
INGRESS = f"[{{from: clients, ports: [{SERVED}], name: served}}, {{from: host, ports: [{INTERNAL}]}}]"


def serve(address: str, port: int) -> None:
    """Answer whoever comes."""
    server = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)

    def answer() -> None:
        while True:
            with server.accept()[0] as one:
                one.sendall(one.recv(100))

    threading.Thread(target=answer, daemon=True).start()


def penstock(running: Running, *arguments: str) -> str:
    argv = [sys.executable, "-m", "penstock.cli.main", "--run", str(running.run), *arguments]
    return running.lab.host.run(argv).stdout


@pytest.fixture
def server(lab: Lab, running: Running) -> Actor:
    clients = ", ".join(f'"{address}"' for address in lab.remote["registry"].addresses)
    running.write("penstock.yaml", HOST % clients)
    running.rules("a", ingress=INGRESS)
    running.up()
    actor = running.actor()
    for address in ("0.0.0.0", "::"):
        actor(serve, address, SERVED)
        actor(serve, address, FORGOTTEN)
    for address in ("127.0.0.1", "::1"):
        actor(serve, address, INTERNAL)
    return actor


def reached_by(running: Running) -> dict[tuple[str, int], list[str]]:
    return {(one["address"], one["port"]): one["reached_by"] for one in running.status()["listening"]}


def test_who_reaches_an_open_port_is_told_and_does(lab: Lab, running: Running, server: Actor) -> None:
    assert reached_by(running) == {
        ("0.0.0.0", SERVED): ["clients (inference)"],
        ("::", SERVED): ["clients (inference)"],
        ("127.0.0.1", INTERNAL): ["host"],
        ("::1", INTERNAL): ["host"],
        ("0.0.0.0", FORGOTTEN): [],
        ("::", FORGOTTEN): [],
    }
    (told,) = [f for f in running.ask("status")["findings"] if f["code"] == "listens-without-rule"]
    assert f"port {FORGOTTEN}," in told["text"]
    for address in lab.host.addresses:
        for caller in ("registry", "stranger"):
            for port in (SERVED, FORGOTTEN):
                outcome = lab.remote[caller].call(tcp, address, port).outcome
                assert (outcome == "ok") == ((caller, port) == ("registry", SERVED)), (caller, address, port)
    for address in ("127.0.0.1", "::1"):
        assert running.asker(tcp, address, INTERNAL).outcome == "ok"
        assert running.asker(tcp, address, SERVED).outcome != "ok"
    server.close()
    eventually(lambda: running.status()["listening"] == [])


def test_it_is_on_the_screen(running: Running, server: Actor) -> None:
    lines = penstock(running, "status").splitlines()
    section = lines[lines.index("Listening") + 1 :]
    assert section[0].startswith(f"  a 0.0.0.0:{SERVED} (")
    assert section[0].endswith("<- clients (inference)")
    assert any(line.startswith(f"  a [::]:{FORGOTTEN} (") and "no rule" in line for line in section)
    server.close()


def test_in_observe_mode_everyone_reaches_it(running: Running, server: Actor) -> None:
    running.rules("a", ingress=INGRESS, mode="observe")
    running.ask("apply")
    assert set(map(tuple, reached_by(running).values())) == {
        ("everyone (observe)",),
        ("everyone on this host (observe)",),
    }
    server.close()


def test_who_was_refused_is_told_by_source(lab: Lab, running: Running, server: Actor) -> None:
    """Each attempt comes from a port of its own, and all of one source are one block."""
    callers = [(host, address) for host in ("registry", "stranger") for address in lab.host.addresses]
    for host, address in callers:
        for _ in range(3):
            assert lab.remote[host].call(tcp, address, FORGOTTEN).outcome != "ok"

    def told() -> list[Json]:
        lines = penstock(running, "blocks", "--direction", "in", "--json").splitlines()
        return [one for one in map(json.loads, lines) if one["port"] == FORGOTTEN]

    sources = {address for host, _ in callers for address in lab.remote[host].addresses}
    eventually(lambda: {one["address"] for one in told() if one["count"] >= 3} == sources)
    assert len(told()) == len(sources)
    assert {one["direction"] for one in told()} == {"in"}
    rows = penstock(running, "blocks", "--direction", "in")
    for source in sources:
        assert rows.count(f"{source} on {FORGOTTEN}/tcp") == 1
    server.close()
