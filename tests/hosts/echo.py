"""Says back whatever it hears, and writes nothing down: for thousands of connections a second.

    python3 echo.py TCP-PORT UDP-PORT ADDRESS...
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
from collections.abc import Callable

BACKLOG = 4096
BUFFER = 4 << 20


def main() -> None:
    """Serve for ever; "ready" on stdout once it does."""
    tcp, udp, *addresses = sys.argv[1:]
    selector = selectors.DefaultSelector()
    for address in addresses:  # each: an answer from the wildcard could come from another one
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, int(tcp)), family=family, backlog=BACKLOG)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        if family == socket.AF_INET6:  # the wildcard of one family must not take the other's port
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        datagrams.bind((address, int(udp)))
        for sock, work in ((listener, _accept), (datagrams, _answer)):
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, work)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            work_: Callable[[selectors.BaseSelector, socket.socket], None] = key.data
            with contextlib.suppress(BlockingIOError):
                work_(selector, key.fileobj)  # type: ignore[arg-type]


def _accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        peer.setblocking(False)
        selector.register(peer, selectors.EVENT_READ, _talk)


def _answer(selector: selectors.BaseSelector, datagrams: socket.socket) -> None:
    while True:
        data, peer = datagrams.recvfrom(2048)
        with contextlib.suppress(OSError):  # whoever asked may be switched off by now
            datagrams.sendto(data, peer)


def _talk(selector: selectors.BaseSelector, peer: socket.socket) -> None:
    data = b""
    with contextlib.suppress(ConnectionError):
        data = peer.recv(2048)
        peer.sendall(data)
    if not data:
        selector.unregister(peer)
        peer.close()


if __name__ == "__main__":
    main()
