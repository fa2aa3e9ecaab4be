"""What rules by name cost with the real daemon: python -m tests.bench.names [--names N] [--addresses N] [--rate N]

A workload may ask for N exact names, each with so many addresses, of a real name server (dnsmasq).  First all of
them are looked up once, then twice: how many a second, the latency at a rate, and the memory of the daemon and of
the resolver.  It needs dnsperf and dnsmasq-base, and runs in a lab of its own.  All share the machine's CPUs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.running import MIB, Running
from penstock.demo.host import BASE_ENVIRONMENT
from penstock.demo.lab import Lab

SERVER, ASKED = "198.51.100.10", "192.0.2.10"
TAKEN = re.compile(r"^> NOERROR \S+ \S+ ([\d.]+)", re.MULTILINE)
"""How long a question took, in a line of `dnsperf -v`."""
HOST = f"version: 1\ndns: {{upstream: [{SERVER}]}}\n"


def names(count: int) -> list[str]:
    return [f"n{number}.example" for number in range(count)]


@contextmanager
def server(lab: Lab, count: int, addresses: int) -> Iterator[None]:
    """A name server that knows all of them."""
    hosts = lab.dir / "hosts"
    with hosts.open("w") as file:
        for number, name in enumerate(names(count)):
            for each in range(number * addresses, (number + 1) * addresses):
                file.write(f"203.{each >> 16 & 255}.{each >> 8 & 255}.{each & 255} {name}\n")
    program = shutil.which("dnsmasq", path=BASE_ENVIRONMENT["PATH"]) or "dnsmasq"
    argv = [program, "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts"]
    argv += ["--bind-interfaces", "--local=/#/", "--pid-file=", f"--listen-address={SERVER}"]
    process = lab.remote["registry"].popen([*argv, f"--addn-hosts={hosts}"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def load(questions: str, *limits: str) -> dict[str, float]:
    """Run dnsperf: questions a second, latencies in ms, how many were lost.  With `-v` also median and p99."""
    argv = ["dnsperf", "-s", ASKED, "-d", questions, "-c", "20", "-q", "100", "-b", "4096", "-t", "10", *limits]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def figure(pattern: str) -> float:
        found = re.search(pattern, said)
        return float(found[1]) if found else float("nan")

    times = sorted(float(taken) * 1000 for taken in TAKEN.findall(said))
    each = {"median ms": times[len(times) // 2], "p99 ms": times[len(times) * 99 // 100]} if times else {}
    return {
        **each,
        "a second": figure(r"Queries per second:\s+([\d.]+)"),
        "mean ms": 1000 * figure(r"Average Latency \(s\):\s+([\d.]+)"),
        "worst ms": 1000 * figure(r"max ([\d.]+)"),
        "not answered": figure(r"Queries lost:\s+(\d+)"),
        "failed": figure(r"SERVFAIL (\d+)") if "SERVFAIL" in said else 0.0,
    }


def resident(tree: Path) -> float:
    """MiB of the resolver."""
    pid = (tree / "penstock.slice/resolver/cgroup.procs").read_text().split()[0]
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def measure(lab: Lab, count: int, addresses: int, rate: int, seconds: int) -> None:
    questions = lab.dir / "questions"
    questions.write_text("".join(f"{name} A\n" for name in names(count)))
    with server(lab, count, addresses), Running(lab) as running:
        running.write("penstock.yaml", HOST)
        running.rules("a", f"[{{to: [{', '.join(names(count))}]}}]")
        running.start()
        running.wait_in_force(60)
        with running.actor("a") as workload:
            time.sleep(1)  # the name server reads its names
            steps: list[tuple[str, list[str]]] = [
                ("each name for the first time", ["-n", "1"]),
                ("again, as many as go", ["-l", str(seconds)]),
                (f"again, {rate} a second", ["-l", str(seconds), "-Q", str(rate), "-v"]),
            ]
            for what, limits in steps:
                figures: dict[str, Any] = workload(load, str(questions), *limits)
                told = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
                print(f"{what:30} {told}", flush=True)
        resolver = running.asker(resident, running.lab.cgroup)
        print(f"{'daemon, resolver':30} {running.rss() / MIB:.0f} MiB, {resolver:.0f} MiB")
        print(f"findings: {sorted(running.findings())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--addresses", type=int, default=50)
    parser.add_argument("--rate", type=int, default=2000, help="questions a second")
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    with Lab() as lab:
        measure(lab, options.names, options.addresses, options.rate, options.seconds)


if __name__ == "__main__":
    main()
