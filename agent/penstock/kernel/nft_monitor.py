"""Announcements of changes to the ruleset of this network namespace (netlink group NFNLGRP_NFTABLES).

One transaction is announced as a message for each object and a last one, NFT_MSG_NEWGEN, with the number of the
generation it made and who made it.
"""

from __future__ import annotations

import errno
import socket
import struct

from penstock.core.events import Commit
from penstock.core.ruleset import TABLE
from penstock.errors import PenstockError
from penstock.kernel import nfnetlink as nl

GROUP = 7  # NFNLGRP_NFTABLES
NEW_GENERATION = 15
FAMILY_INET = 1
RECEIVE_BUFFER = 4 << 20
DATAGRAMS_PER_READ = 256


class NftMonitor:
    """Non-blocking; wait for `fileno` to become readable, then `read`.

    Transactions of the netlink port `own_port`, or of the thread `own_thread`, are announced as not about our
    table: we know of them.  (The kernel says threads as the first pid namespace counts them; in another one ours
    is not recognised, and announced as anybody's.)
    """

    def __init__(self, own_port: int = 0, own_thread: int = 0) -> None:
        self._own_port = own_port
        self._own_thread = own_thread
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, nl.NETLINK_NETFILTER)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._socket.bind((0, 1 << (GROUP - 1)))
        except OSError as e:
            hint = "run it as root; load the module with: modprobe nf_tables"
            raise PenstockError(f"changes of nf_tables cannot be watched: {e.strerror}", hint=hint) from e
        self._touched = False  # the transaction that is being announced is about our table

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> tuple[list[Commit], bool]:
        """Transactions announced since the last call, and whether announcements were lost."""
        commits: list[Commit] = []
        lost = False
        for _ in range(DATAGRAMS_PER_READ):
            try:
                datagram = self._socket.recv(nl.RECEIVE)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            for kind, _, _, port, payload in nl.messages(datagram):
                self._take(kind & 0xFF, port, payload, commits)
        return commits, lost

    def _take(self, kind: int, port: int, payload: bytes, commits: list[Commit]) -> None:
        if kind != NEW_GENERATION:
            if port != 0 and port == self._own_port:  # thousands of learned addresses, perhaps
                return
            # In every other message the first attribute is the table's name.
            first = next(nl.attributes(payload, 4), None)
            if first and payload[0] == FAMILY_INET and nl.string(payload[first[1] : first[2]]) == TABLE:
                self._touched = True
            return
        values = nl.attribute_map(payload, 4)
        (generation,) = struct.unpack(">I", values[1])
        pid = struct.unpack(">I", values[2])[0] if 2 in values else 0
        own = (port != 0 and port == self._own_port) or (pid != 0 and pid == self._own_thread)
        touched = self._touched and not own
        commits.append(Commit(generation, touched, pid, nl.string(values.get(3, b""))))
        self._touched = False
