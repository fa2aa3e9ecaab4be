"""The packet log against the real kernel, in a network namespace of its own.

The namespace is made by a child process (`unshare --net`), which runs this file as a program, programs the
firewall there, and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.core.blocks import Block, Explanation
from penstock.core.folding import Folder
from penstock.core.log_prefix import LOG_GROUP, format_prefix
from penstock.core.packets import parse_nflog
from penstock.errors import PenstockError
from penstock.kernel.nflog import NflogReader

PREFIX = format_prefix("out", "deny", "enforce", "rules", "w")
RULES = f"""
table inet t {{
  counter denied {{ }}
  chain output {{
    type filter hook output priority 0; policy accept;
    udp dport 9 counter name denied log prefix "{PREFIX}" group {LOG_GROUP} snaplen 128 queue-threshold 64
    udp dport 9 drop
  }}
}}
"""
V4, V6 = "127.0.0.1", "::1"
FLOOD = 60_000


def namespace() -> int:
    return os.stat("/proc/self/ns/net").st_ino


# --- in the namespace ---


def lab() -> None:
    """Refuse to touch the namespace that the tests were started from."""
    if namespace() == int(sys.argv[2]):
        raise SystemExit("not in a namespace of my own")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)


def send(address: str, count: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        for _ in range(count):
            with suppress(PermissionError):  # what a local drop is to its sender
                s.sendto(b"x", (address, 9))


def read_until(reader: NflogReader, total: int) -> tuple[list[bytes], int]:
    """Read until records and losses add up to `total`, or nothing has come for 5 s."""
    records: list[bytes] = []
    lost = 0
    deadline = time.monotonic() + 5
    while len(records) + lost < total and time.monotonic() < deadline:
        batch = reader.read()
        if batch.records:
            deadline = time.monotonic() + 5
        records += batch.records
        lost += batch.lost
    return records, lost


def counted() -> int:
    listing = subprocess.run(
        ["nft", "-j", "list", "counters", "table", "inet", "t"], capture_output=True, check=True
    ).stdout
    return int(next(o["counter"]["packets"] for o in json.loads(listing)["nftables"] if "counter" in o))


def act_read() -> object:
    lab()
    with NflogReader() as reader:
        send(V4, 30)
        send(V6, 70)
        records, lost = read_until(reader, 100)
        extra = reader.read()
    seen = Counter(repr(shown(r)) for r in records)
    return {"seen": seen, "lost": lost, "extra": len(extra.records), "counted": counted(), "uid": os.getuid()}


def shown(record: bytes) -> tuple[object, ...]:
    d = parse_nflog(record)
    return (d.workload, d.direction.value, d.family, d.protocol, str(d.remote), d.port, str(d.local), d.uid)


def act_overrun() -> object:
    lab()
    with NflogReader(receive_buffer=64 << 10) as reader:
        send(V4, FLOOD)  # nobody reads meanwhile
        records, lost = 0, 0
        while (batch := reader.read()).records:
            records, lost = records + len(batch.records), lost + batch.lost
        send(V6, 1)  # the record that shows the gap
        rest, gap = read_until(reader, FLOOD + 1 - records - lost)
        return {"records": records + len(rest), "lost": lost + gap, "counted": counted()}


def act_books() -> object:
    """A flood through the rate limit that real rules have, from the kernel into blocks."""
    lab()
    limited = RULES.replace(" log prefix", "\n    udp dport 9 limit rate 50/second burst 100 packets log prefix")
    subprocess.run(["nft", "-f", "-"], input="flush ruleset\n" + limited, text=True, check=True)
    folder, blocks, now = Folder(1), list[Block](), 1.0
    with NflogReader() as reader:
        send(V4, 3000)
        blocks += folder.counted("w", "out", counted(), now)  # before most of the records are here
        for record in read_until(reader, 100)[0] + reader.read().records:
            blocks += folder.add(parse_nflog(record), now, lambda _: Explanation("no-rule", "no rule"))
    blocks += folder.close(now)
    last = {block.id: block for block in blocks}.values()
    logged, unlogged = sum(b.count for b in last), sum(b.unlogged for b in last)
    return {"blocks": len(last), "logged": logged, "sum": logged + unlogged, "counted": counted()}


def act_busy() -> object:
    lab()
    with NflogReader():
        try:
            NflogReader()
        except PenstockError as e:
            return str(e)
    return ""


def act_unprivileged() -> object:
    lab()
    os.setresuid(65534, 65534, 65534)
    try:
        NflogReader()
    except PenstockError as e:
        return str(e)
    return ""


# --- outside ---


def run(act: str) -> object:
    agent = str(Path(__file__).parents[2] / "agent")
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, __file__, act, str(namespace())],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": agent},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
def test_every_packet_is_read() -> None:
    assert run("read") == {
        "seen": {
            repr(("w", "out", 4, "udp", V4, 9, V4, 0)): 30,
            repr(("w", "out", 6, "udp", V6, 9, V6, 0)): 70,
        },
        "lost": 0,
        "extra": 0,
        "counted": 100,
        "uid": 0,
    }


@pytest.mark.root
def test_losses_are_exact() -> None:
    seen = run("overrun")
    assert isinstance(seen, dict)
    assert seen["counted"] == FLOOD + 1
    assert seen["lost"] > 1000
    assert seen["records"] + seen["lost"] == FLOOD + 1


@pytest.mark.root
def test_the_books_agree_with_the_kernel_behind_its_rate_limit() -> None:
    seen = run("books")
    assert isinstance(seen, dict)
    assert seen["sum"] == seen["counted"] == 3000
    assert 100 <= seen["logged"] < 1000
    assert seen["blocks"] == 1


@pytest.mark.root
def test_a_second_reader_is_refused() -> None:
    assert str(run("busy")).startswith(f"packet log group {LOG_GROUP}: another process reads it; ")


@pytest.mark.root
def test_needs_the_capability() -> None:
    assert run("unprivileged") == f"packet log group {LOG_GROUP}: not permitted; run as root, with CAP_NET_ADMIN"


if __name__ == "__main__":
    acts = {
        "read": act_read,
        "overrun": act_overrun,
        "books": act_books,
        "busy": act_busy,
        "unprivileged": act_unprivileged,
    }
    print(json.dumps(acts[sys.argv[1]]()))
