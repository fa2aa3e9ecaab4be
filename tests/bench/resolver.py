"""What look-ups cost: python -m tests.bench.resolver [--seconds N] [--rounds N] [--rate N] [--json]

One upstream, and in turn before it: nobody, penstock's resolver with a stand-in for the daemon that settles at
once, dnsmasq and unbound as plain forwarders that keep nothing.  Who is measured has one CPU, all others another.
Printed are the most questions a second, how many that would be if it had its CPU to itself, and at --rate
questions a second the median, p99 and worst latency in milliseconds, with what the median is more than without
anybody between.  Of all rounds the least disturbed counts, for each figure.

It needs dnsperf and dnsmasq (apt-get install dnsperf dnsmasq-base), and unbound for its row; on a host with
systemd the package `unbound` starts a server when it is installed.  It runs in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from penstock.core import resolver_wire as wire
from penstock.demo import namespaces
from resolver.running import four

UPSTREAM, FORWARDER = 5301, 5302
ADDRESS = "192.0.2.7"
NEW, KNOWN = 200_000, 1_000
"""Names: so many that none is asked twice, and so few that all have been."""

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
MEASURED, OTHERS = 0, 1
"""CPUs."""

RESOLVER = (sys.executable, "-I", "-m", "penstock.resolver")
QUERY = re.compile(rb"^> (\S+) \S+ \S+ ([0-9.]+)$", re.MULTILINE)
STARTS = 5.0
"""Seconds that a program may take until it answers."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one round: questions a second and a CPU second; then, at the rate that was asked for, milliseconds."""

    most: float
    cpu: float
    median: float
    p99: float
    worst: float
    lost: int  # answers that did not come


@dataclass(frozen=True, slots=True)
class Row:
    """The least disturbed figures of all rounds."""

    what: str
    most: float
    cpu: float
    median: float
    p99: float
    worst: float
    added: float
    lost: int


# --- who is measured ---


def program(cpu: int, *argv: str) -> subprocess.Popen[bytes]:
    """Started on that CPU, in silence."""
    found = shutil.which(argv[0], path=PATH)
    if found is None:
        raise SystemExit(f"error: {argv[0]} is not installed")
    return subprocess.Popen(
        ["taskset", "--cpu-list", str(cpu), found, *argv[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def dnsmasq(cpu: int, port: int, *options: str) -> subprocess.Popen[bytes]:
    """Asks nobody that the options do not name."""
    plain = ("--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--cache-size=0")
    bound = ("--bind-interfaces", "--listen-address=127.0.0.1", f"--port={port}", "--user=root", "--pid-file=")
    return program(cpu, "dnsmasq", *plain, *bound, "--dns-forward-max=5000", *options)


def unbound(cpu: int, directory: Path) -> subprocess.Popen[bytes]:
    """Forwards, validates nothing, keeps nothing: the upstream's answers have a TTL of 0."""
    config = directory / "unbound.conf"
    config.write_text(
        f"""server:
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{directory}"
  pidfile: ""
  use-syslog: no
  logfile: "/dev/null"
  verbosity: 0
  interface: 127.0.0.1
  port: {FORWARDER}
  num-threads: 1
  do-not-query-localhost: no
  module-config: "iterator"
  outgoing-range: 4096
  num-queries-per-thread: 4096
remote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{UPSTREAM}
"""
    )
    return program(cpu, "unbound", "-c", str(config))


def penstock(cpu: int) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """The resolver, the daemon's end of its link, and the port."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(cpu), *RESOLVER, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
    names = [f"{kind}{i}.bench.example" for kind, count in (("new", NEW), ("known", KNOWN)) for i in range(count)]
    rules = tuple(wire.NameRuleText(name, False) for name in names)
    upstream = (ip_address("127.0.0.1"), UPSTREAM)
    sockets = four()
    port = sockets[0].getsockname()[1]
    ours.sendall(wire.encode(wire.Configure(1, (upstream,), (), (wire.Names("w", "enforce", rules),))))
    socket.send_fds(ours, [wire.encode(wire.Listen("w"))], [sock.fileno() for sock in sockets])
    for sock in sockets:
        sock.close()
    threading.Thread(target=settle, args=(ours,), daemon=True).start()
    return process, ours, port


def settle(link: socket.socket) -> None:
    """The daemon, with a kernel that takes no time."""
    frames = wire.Frames(wire.MAX_TO_DAEMON)
    with contextlib.suppress(OSError):
        while data := link.recv(1 << 20):
            messages = [json.loads(frame) for frame in frames.feed(data)]
            ids = tuple(message[1] for message in messages if message[0] == "Learn")
            if ids:
                link.sendall(wire.encode(wire.Settled(ids, True)))


# --- measuring ---


def names(path: Path, prefix: str, count: int) -> Path:
    """What dnsperf asks for."""
    path.write_text("".join(f"{prefix}{i}.bench.example A\n" for i in range(count)))
    return path


def dnsperf(port: int, data: Path, seconds: float, *options: str) -> bytes:
    """Its output."""
    found = shutil.which("dnsperf")
    if found is None:
        raise SystemExit("error: dnsperf is not installed; apt-get install dnsperf")
    argv = ["taskset", "--cpu-list", str(OTHERS), found, "-s", "127.0.0.1", "-p", str(port), "-d", str(data)]
    done = subprocess.run([*argv, "-l", f"{seconds:g}", *options], capture_output=True, timeout=seconds + 60)
    return done.stdout


def wait_for(port: int) -> None:
    """Until something answers there."""
    end = time.monotonic() + STARTS
    question = bytes.fromhex("123401000001000000000000") + b"\6known0\5bench\7example\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect(("127.0.0.1", port))
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                sock.send(question)
                sock.recv(4096)
                return
    raise SystemExit(f"error: nobody answers at port {port}")


def cpu_seconds(pid: int) -> float:
    """Of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pid: int, port: int, data: Path, seconds: float, rate: int) -> Figures:
    """One round of the process that answers at `port`."""
    wait_for(port)
    before = cpu_seconds(pid)
    said = dnsperf(port, data, seconds, "-q", "100")
    spent = cpu_seconds(pid) - before
    most, completed = number(said, "Queries per second"), number(said, "Queries completed")
    said = dnsperf(port, data, seconds, "-Q", str(rate), "-v")
    times = sorted(float(taken) * 1000 for rcode, taken in QUERY.findall(said) if rcode == b"NOERROR")
    lost = int(number(said, "Queries sent")) - len(times)
    return Figures(most, completed / spent, times[len(times) // 2], times[len(times) * 99 // 100], times[-1], lost)


def number(said: bytes, what: str) -> float:
    """A figure of dnsperf's summary."""
    found = re.search(rf"{what}:\s+([0-9.]+)".encode(), said)
    if found is None:
        raise SystemExit(f"error: dnsperf says nothing of {what.lower()}")
    return float(found[1])


@contextlib.contextmanager
def running(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """Ended afterwards."""
    process = start()
    try:
        yield process
    finally:
        process.kill()  # ours would go on for some seconds
        process.wait()


UPSTREAM_ITSELF, UNBOUND = "the upstream itself", "unbound"


def measure_round(directory: Path, seconds: float, rate: int) -> Iterator[tuple[str, Figures]]:
    """Everybody once."""
    new, known = names(directory / "new", "new", NEW), names(directory / "known", "known", KNOWN)
    with running(lambda: dnsmasq(OTHERS, UPSTREAM, f"--address=/bench.example/{ADDRESS}")) as upstream:
        yield UPSTREAM_ITSELF, measure(upstream.pid, UPSTREAM, known, seconds, rate)
        for what, data in (("penstock, new names", new), ("penstock, known names", known)):
            process, link, port = penstock(MEASURED)
            with running(lambda p=process: p), link:  # type: ignore[misc]
                wait_for(port)
                if data is known:
                    dnsperf(port, data, seconds, "-n", "1")
                yield what, measure(process.pid, port, data, seconds, rate)
        with running(lambda: dnsmasq(MEASURED, FORWARDER, f"--server=127.0.0.1#{UPSTREAM}")) as peer:
            yield "dnsmasq", measure(peer.pid, FORWARDER, known, seconds, rate)
        if shutil.which(UNBOUND, path=PATH):
            with running(lambda: unbound(MEASURED, directory)) as peer:
                yield UNBOUND, measure(peer.pid, FORWARDER, known, seconds, rate)


def measure_all(rounds: int, seconds: float, rate: int) -> Iterator[Row]:
    """All of them, in turn in each round."""
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as made:
        for _ in range(rounds):
            for what, figures in measure_round(Path(made), seconds, rate):
                found.setdefault(what, []).append(figures)
    direct = min(figures.median for figures in found[UPSTREAM_ITSELF])
    for what, those in found.items():
        median = min(figures.median for figures in those)
        yield Row(
            what,
            max(figures.most for figures in those),
            max(figures.cpu for figures in those),
            median,
            min(figures.p99 for figures in those),
            min(figures.worst for figures in those),
            median - direct,
            min(figures.lost for figures in those),
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="resolver", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    namespaces.unshare(namespaces.CLONE_NEWNET)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.sched_setaffinity(0, {OTHERS})
    rows = list(measure_all(options.rounds, options.seconds, options.rate))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    heads = ("median", "p99", "worst", "added")
    print(f"{'':24} {'most/s':>8} {'CPU sec':>8} " + " ".join(f"{head:>8}" for head in heads) + " lost")
    for row in rows:
        times = " ".join(f"{value:8.3f}" for value in (row.median, row.p99, row.worst, row.added))
        print(f"{row.what:24} {row.most:8.0f} {row.cpu:8.0f} {times} {row.lost:4}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
