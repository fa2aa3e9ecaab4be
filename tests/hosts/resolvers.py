"""Clients that look names up, each in a way of its own, in a cgroup of a host: a governed unit's, or nobody's."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts import resolve_program, rootfs
from hosts.host import SCOPE, Host
from hosts.outside import STRANGER

PROGRAM = "/usr/local/lib/resolve_program.py"
MUSL = "/usr/local/bin/lookup-musl"
PORT = 443

MUSL_SOURCE = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *one;
  char text[64];
  int failed = getaddrinfo(argv[1], "443", &hints, &found);
  if (failed) { puts(gai_strerror(failed)); return 2; }
  for (one = found; one; one = one->ai_next) {
    void *address = one->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
                                              : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
    puts(inet_ntop(one->ai_family, address, text, sizeof text));
  }
  return 0;
}
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look-up brought: addresses, or what a person was told; how long it took, with the program's start."""

    addresses: frozenset[str]
    said: str
    ms: float


def install_resolvers(host: Host) -> None:
    """Put the clients there that no package brings."""
    host.write(PROGRAM, Path(resolve_program.__file__).read_text())
    if musl := _musl():
        host.copy_in(musl, MUSL)


def resolve(
    host: Host, cgroup: str, *orders: Sequence[Any], timeout: float = 60, within: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Have `resolve_program` carry these out, started by the program `within`; an answer each."""
    argv = [*within, "python3", "-I", PROGRAM]
    done = host.run(argv, cgroup=cgroup, timeout=timeout, input=json.dumps(orders))
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def has_musl() -> bool:
    """Whether a program can be made here that has musl's resolver in it."""
    return shutil.which("musl-gcc") is not None


def look_up(client: str, host: Host, name: str, cgroup: str = SCOPE) -> Found:
    """Let one of `CLIENTS` look `name` up."""
    return CLIENTS[client](host, cgroup, name)


def _printed(argv: Iterable[str]) -> Callable[[Host, str, str], Found]:
    """A program that prints addresses, a line each, maybe with more behind them; NAME stands for the name."""

    def run(host: Host, cgroup: str, name: str) -> Found:
        start = time.monotonic()
        done = host.run([w.replace("NAME", name) for w in argv], check=False, cgroup=cgroup)
        ms = (time.monotonic() - start) * 1000
        words = done.stdout.split()
        found = frozenset(str(ipaddress.ip_address(word.strip("[]"))) for word in words if _is_address(word))
        codes = re.findall(r"status: (\w+)", done.stdout)
        said = " ".join(sorted(set(codes))) if codes else done.stderr.strip() or done.stdout.strip()
        return Found(found, "" if found else said or f"status {done.returncode}", ms)

    return run


def _ordered(what: str, *servers: str) -> Callable[[Host, str, str], Found]:
    """An order of `resolve_program`, about the name and these servers."""

    def run(host: Host, cgroup: str, name: str) -> Found:
        words = (*servers, *[name] * 3) if what == "lasting" else (name, *servers)
        (answer,) = resolve(host, cgroup, (what, *words))
        return Found(frozenset(answer["addresses"]), answer["error"], answer["ms"])

    return run


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word.strip("[]"))
    except ValueError:
        return False
    return True


def _dig(*options: str) -> Callable[[Host, str, str], Found]:
    """Both types; no answer from a server within 3 s is none."""
    one = ["+noall", "+comments", "+answer", "+tries=1", "+time=3", *options]
    return _printed(["dig", *one, "NAME", "A", *one, "NAME", "AAAA"])


CLIENTS: Mapping[str, Callable[[Host, str, str], Found]] = {
    "getent": _printed(["getent", "ahosts", "NAME"]),
    "curl": _printed(["curl", "-sS", "-m5", "-o/dev/null", "-w%{remote_ip}\n", f"http://NAME:{PORT}/"]),
    "python": _ordered("getaddrinfo"),
    "dig": _dig(),
    "dig +tcp": _dig("+tcp"),
    "dig @stranger": _dig(f"@{STRANGER[0]}"),
    "dig @stranger over IPv6": _dig(f"@{STRANGER[1]}"),
    "dig +tcp @stranger over IPv6": _dig("+tcp", f"@{STRANGER[1]}"),
    "go": _ordered("go", *STRANGER),
    "one socket for all": _ordered("lasting", STRANGER[0]),
    "musl": _printed([MUSL, "NAME"]),
}
"""Those with a stranger ask one who is no name server."""


def _musl() -> Path | None:
    if not has_musl():
        return None
    folder = rootfs.cache() / "lookup-musl"
    folder.mkdir(exist_ok=True)
    with rootfs.only_one(folder.name):
        source, program = folder / "lookup.c", folder / "lookup"
        if not program.exists() or source.read_text() != MUSL_SOURCE:
            source.write_text(MUSL_SOURCE)
            argv = ["musl-gcc", "-static", "-Os", "-o", str(program), str(source)]
            done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert done.returncode == 0, done.stderr
    return program
