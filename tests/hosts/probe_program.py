"""A server that does as it is told: the stand-in for a governed service that somebody has taken over.

It answers TCP and UDP on its port in both families, and takes orders on a unix socket, one JSON line each, one
answer each.  With --hammer it begins to connect in its first statement and goes on every millisecond.  Standard
library only: it runs in hosts that have nothing else.

    python3 -I probe_program.py SOCKET PORT [--hammer ADDRESS PORT]...
"""

from __future__ import annotations

import socket
import sys

Target = tuple[socket.AddressFamily, tuple[str, int]]


def targets(argv: list[str]) -> list[Target]:
    """What --hammer names."""
    found: list[Target] = []
    for at, word in enumerate(argv):
        if word == "--hammer":
            family = socket.AF_INET6 if ":" in argv[at + 1] else socket.AF_INET
            found.append((family, (argv[at + 1], int(argv[at + 2]))))
    return found


_in_progress: list[socket.socket] = []


def blow(wanted: list[Target]) -> None:
    """One datagram and one connection attempt to each, waiting for nothing."""
    for family, address in wanted:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            counts["tried"] += 1
            try:
                sock.connect(address)
                if kind == socket.SOCK_DGRAM:
                    sock.send(b"hammer")
            except BlockingIOError:
                pass
            except OSError:
                counts["refused"] += 1
            _in_progress.append(sock)
    while len(_in_progress) > 200:
        _in_progress.pop(0).close()


counts = {"tried": 0, "refused": 0}
if __name__ == "__main__":
    blow(targets(sys.argv))  # before anything else is even imported

import contextlib  # noqa: E402
import errno  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

_held: dict[int, socket.socket] = {}


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Carry out one order.

    `{"do": "tcp"|"udp", "address", "port", "timeout", "hold": bool}` connects, sends "hello", waits for an answer;
    `{"do": "send", "id"}` the same on a held connection; `{"do": "listen", "port"}` opens one more port;
    `{"do": "find", "name"}` looks a name up; `{"do": "counts"}` says what the hammer did.
    Answers have "outcome": ok, timeout or the name of an errno.
    """
    start = time.monotonic()
    answer: dict[str, Any] = {"outcome": "ok"}
    try:
        if order["do"] == "counts":
            answer.update(counts)
        elif order["do"] == "find":
            answer["reply"] = str(socket.getaddrinfo(order["name"], 443)[0][4][0])
        elif order["do"] == "listen":
            answer["reply"] = str(listen(order["port"]))
        elif order["do"] == "send":
            answer["reply"] = talk(_held[order["id"]])
        else:
            answer.update(connect(order))
    except TimeoutError:
        answer["outcome"] = "timeout"
    except socket.gaierror as error:
        answer["outcome"] = "EAI_NONAME" if error.errno == socket.EAI_NONAME else str(error)
    except OSError as error:
        answer["outcome"] = errno.errorcode.get(error.errno or 0, str(error))
    return {**answer, "ms": (time.monotonic() - start) * 1000}


def connect(order: dict[str, Any]) -> dict[str, Any]:
    """A connection, or a datagram."""
    family = socket.AF_INET6 if ":" in order["address"] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if order["do"] == "tcp" else socket.SOCK_DGRAM)
    try:
        sock.settimeout(order.get("timeout", 3))
        sock.connect((order["address"], order["port"]))
        reply = talk(sock)
    except OSError:
        sock.close()
        raise
    if not order.get("hold"):
        sock.close()
        return {"reply": reply}
    _held[id(sock)] = sock
    return {"reply": reply, "id": id(sock)}


def talk(sock: socket.socket) -> str:
    """Say hello and return the answer."""
    sock.sendall(b"hello")
    return sock.recv(65536).decode("latin-1")


def listen(port: int) -> int:
    """Echo on that port, both protocols and families; 0 is one that the kernel chooses.  Returns the port."""
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    port = server.getsockname()[1]
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    # Two sockets, and no wildcard that takes both families: an answer must come from the address that was asked.
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        receiver.bind((address, port))
        threading.Thread(target=echo, args=(receiver,), daemon=True).start()
    return port


def serve(server: socket.socket) -> None:
    """One thread a connection."""
    while True:
        connection, _ = server.accept()
        threading.Thread(target=stream, args=(connection,), daemon=True).start()


def stream(connection: socket.socket) -> None:
    """Echo until the other side ends."""
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def echo(receiver: socket.socket) -> None:
    """Echo datagrams."""
    while True:
        with contextlib.suppress(OSError):
            data, peer = receiver.recvfrom(65536)
            receiver.sendto(data, peer)


def hammer(wanted: list[Target]) -> None:
    """One blow every millisecond, for ever."""
    while True:
        blow(wanted)
        time.sleep(0.001)


def command(connection: socket.socket) -> None:
    """One order, one answer."""
    with contextlib.suppress(OSError), connection, connection.makefile("rw") as lines:
        lines.write(json.dumps(obey(json.loads(lines.readline()))) + "\n")


def main() -> None:
    """Serve until killed."""
    if wanted := targets(sys.argv):
        threading.Thread(target=hammer, args=(wanted,), daemon=True).start()
    listen(int(sys.argv[2]))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(sys.argv[1])
        control.listen(64)
        while True:
            connection, _ = control.accept()
            threading.Thread(target=command, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
