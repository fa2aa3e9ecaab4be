"""The life of an installed penstock on one real host, from `protect` to `uninstall`, with real packets.

    python3 scenario.py [--keep]        as root, on a throw-away machine with systemd where penstock is installed

One file, and nothing but Python's own library, so that any machine can run it: the booted hosts of the tests and
the stock distributions of vagrant/ run the same.  It makes an outside of its own, a network namespace behind a
cable, with a stranger and an allowed server in it; what counts as "did not arrive" is what a recorder there saw.
Each step is a line, `ok` or `FAIL`; the exit status is 0 only if all were ok.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNIT = "scenario-model.service"
WORKLOAD = "scenario-model"
UNIT_FILE = Path("/etc/systemd/system") / UNIT
RULES = Path("/etc/penstock/rules.d") / f"{WORKLOAD}.yaml"
SOCKET = Path("/run/scenario-model.sock")
NETNS = "scenario-outside"
HERE = {4: "203.0.113.1", 6: "2001:db8:5::1"}
GOOD = {4: "203.0.113.5", 6: "2001:db8:5::5"}
STRANGER = {4: "203.0.113.66", 6: "2001:db8:5::66"}
PORT, CLOSED = 8080, 8081
SERVED = 80
PATIENCE = 0.7

UNIT_TEXT = """[Unit]
Description=Stands in for a model server
[Service]
ExecStart={python} {me} --server
User=nobody
RuntimeDirectory=scenario-model
"""
POLICY = """version: 1
workload: {workload}
mode: enforce
match: {{unit: {unit}}}
egress:
  - to: [{good4}, "{good6}"]
    ports: [{port}, {port}/udp]
ingress:
  - ports: [{listen}, {listen}/udp]
    from: [{good4}, "{good6}"]
"""


# --- the server that is governed, and the outside: this file again, in other processes ---


def attempt(kind: str, address: str, port: int, source: str = "") -> str:
    """Connect or send from this process; what came of it, in a word."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as out:
        out.settimeout(PATIENCE)
        try:
            if source:
                out.bind((source, 0))
            out.connect((address, port))
            out.send(b"hello")
            return out.recv(100).decode() or "nothing"
        except OSError as e:
            return type(e).__name__


def serve(family: socket.AddressFamily, kind: int, address: str, port: int) -> None:
    """Answer "hello" on one address, for ever, in a thread."""
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, port))
    threading.Thread(target=_answer, args=(listener, kind), daemon=True).start()


def _answer(listener: socket.socket, kind: int) -> None:
    if kind == socket.SOCK_DGRAM:
        while True:
            _, peer = listener.recvfrom(2048)
            listener.sendto(b"hello", peer)
    listener.listen(64)
    while True:
        peer_socket, _ = listener.accept()
        with peer_socket:
            peer_socket.sendall(b"hello")


def serve_all(addresses: list[str], ports: list[int]) -> None:
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                serve(family, kind, address, port)


def be_the_server() -> None:
    """Listen on two ports, and connect wherever the one who asks over a Unix socket says."""
    serve_all(["0.0.0.0", "::"], [PORT, CLOSED])
    place = Path("/run/scenario-model/control")
    place.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(str(place))
    place.chmod(0o666)
    control.listen(16)
    while True:
        peer, _ = control.accept()
        with peer:
            kind, address, port = json.loads(peer.recv(1000))
            peer.sendall(attempt(kind, address, port).encode())


def be_the_outside() -> None:
    """Serve, record every packet that arrives, and do what lines on stdin say, answering a line each."""
    seen: list[tuple[str, str, int]] = []
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    serve_all([*GOOD.values(), *STRANGER.values()], [SERVED])
    threading.Thread(target=_record, args=(wire, seen), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = json.loads(line)
        answer = list(seen) if word == "seen" else attempt(*rest)
        print(json.dumps(answer), flush=True)


def _record(wire: socket.socket, seen: list[tuple[str, str, int]]) -> None:
    while True:
        data, place = wire.recvfrom(2048)
        if place[2] == socket.PACKET_OUTGOING:
            continue
        found = _destination(data)
        if found is not None:
            seen.append(found)


def _destination(data: bytes) -> tuple[str, str, int] | None:
    """(protocol, address, port) of a TCP or UDP packet."""
    if data[0] >> 4 == 4:
        header, number = (data[0] & 15) * 4, data[9]
        address = socket.inet_ntop(socket.AF_INET, data[16:20])
    elif data[0] >> 4 == 6:
        header, number = 40, data[6]
        address = socket.inet_ntop(socket.AF_INET6, data[24:40])
    else:
        return None
    if number not in (6, 17) or len(data) < header + 4:
        return None
    (port,) = struct.unpack("!H", data[header + 2 : header + 4])
    return ("tcp" if number == 6 else "udp"), address, port


# --- the scenario ---


def run(*argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done


class Outside:
    """The network namespace behind a cable; everything in it ends with `close`."""

    def __init__(self) -> None:
        self.close_network()
        run("ip", "netns", "add", NETNS)
        run("ip", "link", "add", "scn0", "type", "veth", "peer", "name", "scn1", "netns", NETNS)
        for family, length in ((4, 24), (6, 64)):
            nodad = ["nodad"] if family == 6 else []
            run("ip", "addr", "add", f"{HERE[family]}/{length}", "dev", "scn0", *nodad)
            for address in (GOOD[family], STRANGER[family]):
                run("ip", "-n", NETNS, "addr", "add", f"{address}/{length}", "dev", "scn1", *nodad)
        run("ip", "link", "set", "scn0", "up")
        run("ip", "-n", NETNS, "link", "set", "scn1", "up")
        run("ip", "-n", NETNS, "link", "set", "lo", "up")
        argv = ["ip", "netns", "exec", NETNS, sys.executable, __file__, "--outside"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def arrived(self, kind: str, address: str, port: int) -> int:
        """Packets so far."""
        return sum(tuple(one) == (kind, address, port) for one in self.ask("seen"))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.close_network()

    @staticmethod
    def close_network() -> None:
        run("ip", "link", "del", "scn0", check=False)
        run("ip", "netns", "del", NETNS, check=False)


def from_server(kind: str, address: str) -> str:
    """What the governed server gets when it connects there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(10)
        peer.connect("/run/scenario-model/control")
        peer.sendall(json.dumps([kind, address, SERVED]).encode())
        return peer.recv(100).decode()


def every(check: Callable[[str, int], str]) -> str:
    """The first complaint of `check` over both protocols and families."""
    found = (check(kind, family) for kind in ("tcp", "udp") for family in (4, 6))
    return next((complaint for complaint in found if complaint), "")


class Scenario:
    """The steps, in their order."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.failed = 0
        self.outside: Outside

    def step(self, text: str, work: Callable[[], str | None]) -> None:
        start = time.monotonic()
        try:
            complaint = work() or ""
        except (AssertionError, LookupError, OSError, ValueError, subprocess.TimeoutExpired) as e:
            complaint = f"{type(e).__name__}: {e}"
        took = f"{time.monotonic() - start:.1f} s"
        self.failed += bool(complaint)
        print(f"FAIL  {text}: {complaint}" if complaint else f"ok    {text} ({took})", flush=True)

    # what is said of packets

    def all_open(self) -> str:
        return every(
            lambda kind, family: self._reaches(kind, STRANGER[family]) or self._reaches(kind, GOOD[family])
        )

    def ruled(self) -> str:
        """The allowed is reached, the stranger sees no packet, and only the open port answers."""
        return every(
            lambda kind, family: self._reaches(kind, GOOD[family])
            or self._denied(kind, STRANGER[family])
            or self._comes_in(kind, family)
        )

    def _reaches(self, kind: str, address: str) -> str:
        said = from_server(kind, address)
        return "" if said == "hello" else f"{kind} {address} is not reached: {said}"

    def _denied(self, kind: str, address: str) -> str:
        before = self.outside.arrived(kind, address, SERVED)
        said = from_server(kind, address)
        time.sleep(0.05)
        after = self.outside.arrived(kind, address, SERVED)
        return "" if after == before and said != "hello" else f"{kind} {address}: {after - before} packets, {said}"

    def _comes_in(self, kind: str, family: int) -> str:
        """Only whom the rules name, and only on the port that they name."""
        calls = ((PORT, GOOD), (CLOSED, GOOD), (PORT, STRANGER))
        said = [self.outside.ask("try", kind, HERE[family], port, who[family]) for port, who in calls]
        right = [word == "hello" for word in said] == [True, False, False]
        return "" if right else f"{kind} {HERE[family]}: {said}"

    # the steps

    def play(self) -> int:
        self.outside = Outside()
        try:
            self._story()
        finally:
            self._clean_up()
        print("all ok" if not self.failed else f"{self.failed} FAILED", flush=True)
        return 1 if self.failed else 0

    def _story(self) -> None:
        self.step("a server runs as a unit and reaches everybody", self._start_server)
        self.step("penstock protect restarts nothing", self._protect)
        self.step("plan, apply --confirm, confirm: it is bound where it runs", self._apply)
        self.step("in observe mode it still reaches everybody", self.all_open)
        self.step("enforce: the rules hold without a restart", self._enforce)
        self.step("after a restart it is in its slice, and the rules hold", self._restart)
        self.step("the daemon is killed: the rules hold, and it comes back", self._kill)
        self.step("the daemon is stopped: the rules hold", self._stopped)
        self.step("somebody flushes everything: repaired within a second", self._flush)
        self.step("the blocks tell of the stranger", self._blocks)
        if not self.keep:
            self.step("uninstall leaves the server running, and open", self._uninstall)

    def _start_server(self) -> str:
        UNIT_FILE.write_text(UNIT_TEXT.format(python=sys.executable, me=Path(__file__).resolve()))
        run("systemctl", "daemon-reload")
        run("systemctl", "restart", UNIT)
        self._wait_for_server()
        return self.all_open()

    @staticmethod
    def _wait_for_server() -> None:
        deadline = time.monotonic() + 15
        while True:
            try:
                from_server("udp", GOOD[4])
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def _protect(self) -> str:
        before = main_pid()
        run("penstock", "protect", UNIT)
        wrong = "" if "mode: observe" in RULES.read_text() else "the file is not in observe mode"
        return wrong or ("" if main_pid() == before else "it was restarted")

    def _apply(self) -> str:
        run("penstock", "plan")
        run("penstock", "apply", "--confirm", "60s")
        run("penstock", "confirm")
        return expect(enrolment="in-place", egress="observing")

    def _enforce(self) -> str:
        RULES.write_text(
            POLICY.format(
                workload=WORKLOAD, unit=UNIT, good4=GOOD[4], good6=GOOD[6], port=SERVED, listen=PORT
            )
        )
        run("penstock", "apply")
        return expect(egress="enforcing", ingress="enforcing") or self.ruled()

    def _restart(self) -> str:
        run("systemctl", "restart", UNIT)
        self._wait_for_server()
        return expect(enrolment="slice", egress="enforcing") or self.ruled()

    def _kill(self) -> str:
        run("systemctl", "kill", "--signal=KILL", "penstock.service")
        wrong = self.ruled()
        run("penstock", "status", "--wait", "--timeout", "30s", check=False)
        return wrong or expect(egress="enforcing") or self.ruled()

    def _stopped(self) -> str:
        run("systemctl", "stop", "penstock.service")
        wrong = self.ruled()
        run("systemctl", "start", "penstock.service")
        run("penstock", "status", "--wait", "--timeout", "30s", check=False)
        return wrong or expect(egress="enforcing")

    def _flush(self) -> str:
        run("nft", "flush", "ruleset")
        deadline = time.monotonic() + 1
        while self._denied("udp", STRANGER[4]) and time.monotonic() < deadline:
            pass
        codes = {finding["code"] for finding in status()["findings"]}
        return self.ruled() or ("" if "foreign-change" in codes else f"no finding: {codes}")

    def _blocks(self) -> str:
        lines = run("penstock", "blocks", "--since", "10m", "--json").stdout.splitlines()
        addresses = {json.loads(line)["address"] for line in lines}
        return "" if set(STRANGER.values()) <= addresses else f"only {addresses}"

    def _uninstall(self) -> str:
        before = main_pid()
        run("penstock", "uninstall", "--yes", "--purge")
        wrong = self.all_open() or ("" if main_pid() == before else "it was restarted")
        paths = ("/usr/lib/penstock", "/etc/penstock", "/usr/bin/penstock")
        left = [path for path in paths if os.path.lexists(path)]
        return wrong or (f"left behind: {left}" if left else "")

    def _clean_up(self) -> None:
        run("systemctl", "stop", UNIT, check=False)
        UNIT_FILE.unlink(missing_ok=True)
        run("systemctl", "daemon-reload", check=False)
        self.outside.close()


def main_pid() -> str:
    return run("systemctl", "show", "-p", "MainPID", "--value", UNIT).stdout.strip()


def status() -> Any:
    return json.loads(run("penstock", "status", "--json", check=False).stdout)


def expect(**wanted: str) -> str:
    """Whether `status` says so of the workload, within some seconds: 5, or PENSTOCK_SCENARIO_WAIT."""
    deadline = time.monotonic() + float(os.environ.get("PENSTOCK_SCENARIO_WAIT", "5"))
    while True:
        found: Any = next((one for one in status()["workloads"] if one["name"] == WORKLOAD), {})
        wrong = [f"{key} is {found.get(key)}" for key, value in wanted.items() if found.get(key) != value]
        if not wrong or time.monotonic() > deadline:
            return ", ".join(wrong)
        time.sleep(0.1)


if __name__ == "__main__":
    if "--server" in sys.argv:
        be_the_server()
    elif "--outside" in sys.argv:
        be_the_outside()
    else:
        sys.exit(Scenario("--keep" in sys.argv).play())
