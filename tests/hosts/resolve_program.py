"""Looks names up in the ways that programs do, and connects to what was found.  Standard library only.

    echo '[["ORDER", ARGUMENT...], ...]' | python3 -I resolve_program.py

Prints a JSON list, an answer for each order, in turn:

    getaddrinfo NAME              the C library's, as most programs
    go NAME SERVER...             asks these servers and reads no resolv.conf: a query each for A and AAAA, at
                                  once, from sockets of their own; 5 s each, two rounds; over TCP when cut short
    lasting SERVER NAME...        one connected socket for all, in the order they come back, as c-ares
    again SERVER FILE NAME        from one socket twice; in between it makes FILE.NAME and waits for FILE
    early FILE SERVER REFUSED ALLOWED   asks for ever, and keeps in FILE when it began and what it was told
    varlink NAME                  systemd-resolved's, over its socket file: no packet
    raw udp|tcp SERVER PORT NAME TYPE [SECONDS [OWN-PORT]]
    first PORT NAME...            look up and connect at once, to the first address of each family

A look-up's answer is {"addresses", "error", "ms"} ("" when something was found), raw's {"rcode", "answers",
"extended", "error", "ms"}, and first's {"names", "connected", "errors": {what: how often}, "worst", "ms"}.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28}
TYPES |= {"SRV": 33, "NAPTR": 35, "SVCB": 64, "HTTPS": 65, "AXFR": 252, "ANY": 255}
RCODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
EAI = {number: name for name, number in vars(socket).items() if name.startswith("EAI_")}


class Failed(Exception):
    """A look-up failed; what a person is told."""


def query(name: str, kind: str) -> bytes:
    """With EDNS and 1232 bytes of room."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    header = os.urandom(2) + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 1)
    return (
        header + labels + b"\0" + struct.pack("!HH", TYPES[kind], 1) + b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
    )


def _skip(message: bytes, at: int) -> int:
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def read(message: bytes) -> dict[str, Any]:
    """An answer's code, addresses, number of records, extended errors, and whether it was cut short."""
    _, flags, questions, *counts = struct.unpack_from("!HHHHHH", message)
    at, found, extended = 12, [], []
    for _ in range(questions):
        at = _skip(message, at) + 4
    for _ in range(sum(counts)):
        at = _skip(message, at)
        kind, _, _, size = struct.unpack_from("!HHIH", message, at)
        data = message[at + 10 : at + 10 + size]
        at += 10 + size
        if kind in (1, 28):
            found.append(socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data))
        while kind == 41 and len(data) >= 4:
            option, long = struct.unpack_from("!HH", data)
            if option == 15:
                extended.append(struct.unpack_from("!H", data, 4)[0])
            data = data[4 + long :]
    code = RCODES.get(flags & 15, str(flags & 15))
    return {
        "rcode": code,
        "addresses": found,
        "answers": counts[0],
        "extended": extended,
        "cut": bool(flags & 512),
    }


def connected(kind: int, server: str, port: int, timeout: float, own: int = 0) -> socket.socket:
    """A socket that is connected to it, from that port of this host."""
    sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)
    sock.settimeout(timeout)
    try:
        if own:
            sock.bind(("", own))
        sock.connect((server, port))
    except OSError:
        sock.close()
        raise
    return sock


def exchange(
    protocol: str, server: str, port: int, name: str, kind: str, timeout: float, own: int = 0
) -> dict[str, Any]:
    """One question, one answer; OSError when there is none."""
    asked = query(name, kind)
    if protocol == "tcp":
        with connected(socket.SOCK_STREAM, server, port, timeout, own) as sock, sock.makefile("rb") as stream:
            sock.sendall(struct.pack("!H", len(asked)) + asked)
            head = stream.read(2)
            if len(head) < 2:
                raise ConnectionResetError(errno.ECONNRESET, "no answer")
            return read(stream.read(struct.unpack("!H", head)[0]))
    with connected(socket.SOCK_DGRAM, server, port, timeout, own) as sock:
        sock.send(asked)
        until = time.monotonic() + timeout
        while True:
            sock.settimeout(max(until - time.monotonic(), 0.001))
            message = sock.recv(4096)
            if message[:2] == asked[:2]:
                return read(message)


def getaddrinfo(name: str) -> list[str]:
    """By the C library."""
    try:
        found = socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Failed(EAI.get(error.errno, str(error.errno))) from None
    return [str(entry[4][0]) for entry in found]


def go(name: str, *servers: str) -> list[str]:
    """As Go's own resolver: the first server that says something counts."""
    said: dict[str, dict[str, Any]] = {}

    def ask(kind: str) -> None:
        for server in servers * 2:
            try:
                answer = exchange("udp", server, 53, name, kind, 5)
                if answer["cut"]:
                    answer = exchange("tcp", server, 53, name, kind, 5)
            except OSError as error:
                said[kind] = {"rcode": type(error).__name__, "addresses": []}
                continue
            said[kind] = answer
            if answer["rcode"] in ("NOERROR", "NXDOMAIN"):
                return

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("A", "AAAA")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = [address for answer in said.values() for address in answer["addresses"]]
    if not addresses:
        raise Failed(" ".join(sorted({answer["rcode"] for answer in said.values()})))
    return addresses


def lasting(server: str, *names: str) -> list[str]:
    """All through one socket."""
    waiting = {asked[:2]: asked for name in names for asked in (query(name, "A"), query(name, "AAAA"))}
    found: list[str] = []
    codes = set()
    with connected(socket.SOCK_DGRAM, server, 53, 5) as sock:
        for asked in waiting.values():
            sock.send(asked)
        while waiting:
            if not select.select([sock], [], [], 5)[0]:
                raise Failed(f"{len(waiting)} without an answer")
            message = sock.recv(4096)
            if waiting.pop(message[:2], None):
                answer = read(message)
                found += answer["addresses"]
                codes.add(answer["rcode"])
    if not found:
        raise Failed(" ".join(sorted(codes)))
    return found


def again(server: str, file: str, name: str) -> dict[str, Any]:
    """The codes of two answers, to questions from one socket; "" for none in 2 s."""
    codes: list[str] = []
    with connected(socket.SOCK_DGRAM, server, 53, 2) as sock:
        for _ in range(2):
            if codes:
                Path(f"{file}.{name}").touch()
            while codes and not os.path.exists(file):
                time.sleep(0.01)
            try:
                sock.send(query(name, "A"))
                codes.append(read(sock.recv(4096))["rcode"])
            except OSError:
                codes.append("")
    return {"codes": codes}


def early(file: str, server: str, refused: str, allowed: str) -> NoReturn:
    """One after the other, by the C library and from a socket of its own."""
    told: Counter[str] = Counter()
    began = time.monotonic()
    while True:
        for what, name in (("refused", refused), ("allowed", allowed)):
            try:
                told[what] += bool(getaddrinfo(name))
            except Failed:
                told["failed"] += 1
            told[what] += bool(raw("udp", server, 53, name, "A", 0.2)["addresses"])
        Path(f"{file}.new").write_text(json.dumps({"began": began, **told}))
        os.replace(f"{file}.new", file)
        time.sleep(0.001)


def varlink(name: str) -> list[str]:
    """By systemd-resolved."""
    wanted = {"method": "io.systemd.Resolve.ResolveHostname", "parameters": {"name": name}}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        try:
            sock.connect("/run/systemd/resolve/io.systemd.Resolve")
        except OSError as error:
            raise Failed(type(error).__name__) from None
        sock.sendall(json.dumps(wanted).encode() + b"\0")
        answer = json.loads(sock.recv(65536).rstrip(b"\0"))
    if "error" in answer:
        raise Failed(answer["error"])
    found = answer["parameters"]["addresses"]
    return [socket.inet_ntop(entry["family"], bytes(entry["address"])) for entry in found]


def raw(
    protocol: str, server: str, port: int, name: str, kind: str, timeout: float = 2, own: int = 0
) -> dict[str, Any]:
    """One question; what came back."""
    try:
        return {**exchange(protocol, server, port, name, kind, timeout, own), "error": ""}
    except OSError as error:
        said = "timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno or 0, str(error))
        return {"rcode": "", "addresses": [], "answers": 0, "extended": [], "error": said}


def first(port: int, *names: str) -> dict[str, Any]:
    """The first connection after each answer."""
    errors: Counter[str] = Counter()
    worst, done = 0.0, 0
    for name in names:
        start = time.monotonic()
        try:
            addresses = getaddrinfo(name)
        except Failed as error:
            errors[f"look-up: {error}"] += 1
            continue
        worst = max(worst, time.monotonic() - start)
        for address in {":" in a: a for a in addresses}.values():
            try:
                connected(socket.SOCK_STREAM, address, port, 2).close()
                done += 1
            except OSError as error:
                errors[type(error).__name__] += 1
    return {"names": len(names), "connected": done, "errors": dict(errors), "worst": worst * 1000}


ORDERS: dict[str, Callable[..., Any]] = {
    "getaddrinfo": getaddrinfo,
    "go": go,
    "lasting": lasting,
    "again": again,
    "early": early,
    "varlink": varlink,
    "raw": raw,
    "first": first,
}


def obey(order: list[Any]) -> dict[str, Any]:
    """Carry out one order; see the module."""
    what, *words = order
    start = time.monotonic()
    try:
        found = ORDERS[what](*words)
        answer = found if isinstance(found, dict) else {"addresses": sorted(set(found)), "error": ""}
    except Failed as error:
        answer = {"addresses": [], "error": str(error)}
    return {**answer, "ms": (time.monotonic() - start) * 1000}


if __name__ == "__main__":
    json.dump([obey(order) for order in json.load(sys.stdin)], sys.stdout)
