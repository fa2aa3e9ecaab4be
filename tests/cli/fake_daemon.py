"""A daemon that only talks: it answers requests of the control socket as it is told, and remembers them.

The command line is tested against it; what it answers has the shape that the real one answers.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from penstock.core import state
from penstock.core.wire import Json, Message, decode_request, encode_error, encode_result

Reply = Json | tuple[str, str] | Callable[[Message], Json] | bytes
"""A result, an error with its hint, a function of the request, or bytes as they are."""

FILES = {
    "penstock.yaml": b"version: 1\nnetworks:\n  clients: {cidr: 10.30.0.0/16, plane: inference}\n"
    b"dns: {upstream: [192.0.2.53]}\n",
    "rules.d/litellm.yaml": b"""\
version: 1
workload: litellm
mode: enforce
egress:
  - {to: 10.30.1.5, ports: [5432], name: db}
  - {to: registry.example.org}
ingress:
  - {from: clients, ports: [8000]}
match: {container: litellm}
""",
    "rules.d/ollama.yaml": b"version: 1\nworkload: ollama\nmode: observe\negress: []\ningress: []\n",
}


BY_NAME = "egress-8c86f08f"
"""The rule of litellm that has a name."""


def workload(name: str = "litellm", **changes: Any) -> dict[str, Any]:
    """A workload as `status` has it."""
    return {
        "name": name,
        "mode": "enforce",
        "until": None,
        "egress": "enforcing",
        "ingress": "enforcing",
        "enrolment": "run",
        "processes": 3,
        "units": [],
        "listening": [],
        "outside": 0,
        "denied": 12345,
        "unlogged": 0,
        "blocks_1h": 2,
    } | changes


def unit(name: str = "litellm.service", how: str = "in-place", **changes: Any) -> dict[str, Any]:
    """A unit of a workload as `status` has it."""
    return {"unit": name, "cgroup": f"system.slice/{name}", "how": how, "processes": 1} | changes


def policy(**changes: Any) -> dict[str, Any]:
    """The policy as `status` has it."""
    return {
        "hash": "abcdef012345",
        "applied": "2026-11-25T02:12:01Z",
        "pending_files": 0,
        "confirm_until": None,
    } | changes


def finding(code: str = "root", severity: str = "info", **changes: Any) -> dict[str, Any]:
    """A finding as `status` has it."""
    return {"code": code, "severity": severity, "workload": None, "text": "t", "remedy": "r"} | changes


def status(*workloads: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What `status` answers."""
    return {
        "v": 1,
        "time": "2026-11-25T02:15:09Z",
        "daemon": {"running": True, "pid": 7, "version": "0.1.0", "since": "2026-11-25T02:12:00Z"},
        "policy": policy(),
        "kernel": {"backend": "nft", "agrees": True, "checked": "2026-11-25T02:15:07Z"},
        "workloads": list(workloads or [workload()]),
        "implicit": ["a workload may talk to itself"],
        "grants": [],
        "findings": [],
    } | changes


def lent(**changes: Any) -> dict[str, Any]:
    """A grant as `status` and `grants` have it."""
    return {
        "id": "grant-1a2b3c4d",
        "workload": "litellm",
        "direction": "out",
        "peer": "10.30.1.9",
        "port": 5432,
        "protocol": "tcp",
        "until": "2026-11-25T02:45:09Z",
        "owner": "anna",
        "reason": "to see",
        "what": "10.30.1.9:5432",
        "preset": None,
        "mode": None,
        "made": "2026-11-25T02:15:09Z",
    } | changes


NO_RULES = {"direction": None, "peer": None, "port": None, "protocol": None, "mode": "observe"}
"""Of a grant that is a mode."""


def by_the_rules(message: Message) -> Json:
    """What a kernel holds that has the policy in `FILES`."""
    asked = message.arguments
    out = (asked["direction"], asked["address"], asked["port"]) == ("out", "10.30.1.5", 5432)
    client = asked["direction"] == "in" and asked["port"] == 8000 and asked["address"].startswith("10.30.")
    return {"holds": asked["protocol"] == "tcp" and (out or client), "learned": False}


def learned_at(port: int) -> Reply:
    """What a kernel holds that has learned any address, open at that port."""
    return lambda message: {"holds": False, "learned": message.arguments["port"] == port}


def names(**changes: Any) -> dict[str, Any]:
    """What is known of a name of litellm, or of an address: nothing."""
    nothing: dict[str, Any] = {"rules": [], "addresses": [], "names": [], "asked": None}
    return {"resolving": True, "mode": "enforce"} | nothing | changes


def in_force() -> dict[str, Reply]:
    """The answers when the policy in `FILES` is in force; tests/contract holds them against the real daemon's."""
    return {
        "status": status(
            workload(enrolment="none", processes=0, denied=0, blocks_1h=0),
            workload(
                "ollama", mode="observe", egress="observing", ingress="observing", enrolment="none", processes=0
            ),
            findings=[finding("not-yet-enforced", "warning", workload="litellm")],
        ),
        "apply": {
            "changed": False,
            "hash": "abcdef",
            "workloads": 2,
            "seconds": 0.01,
            "problems": [_PROBLEM],
            "confirm_until": None,
        },
        "confirm": {"confirmed": False, "hash": "abcdef"},
        "grants": {"grants": []},
        "grant": {"grant": lent(), "notes": []},
        "mode": {"grant": lent(**NO_RULES), "notes": []},
        "revoke": {"grant": lent()},
        "rollback": ("no policy before this one is kept", "penstock rollback --list"),
        "ready": lambda message: _ready(message.arguments["workload"]),
        "holds": by_the_rules,
        "opens": {"rules": []},
        "names": lambda message: _names(message.arguments["name"]),
        "hits": {"rules": {"db": 0, "ingress-22222222": 0}, "names": {BY_NAME: 0}},
    }


_PROBLEM = {
    "file": "rules.d/litellm.yaml",
    "line": 6,
    "column": 5,
    "severity": "warning",
    "code": "not-yet-enforced",
    "message": "m",
    "hint": "h",
}


def _names(name: str) -> Json:
    known = name == "registry.example.org"
    return names(rules=["registry.example.org"] if known else [])


def _ready(workload: str) -> Json:
    known = workload in ("litellm", "ollama")
    return {"ready": known, "reason": "" if known else "the applied policy has no such workload"}


class FakeDaemon:
    """Serves RUN/control.sock in `home`; `replies` may be changed at any time."""

    def __init__(self, home: Path, replies: Mapping[str, Reply] | None = None) -> None:
        self.home = home
        self.run = home / "run"
        self.replies = dict(replies or {})
        self.requests: list[Message] = []
        self._listener: socket.socket | None = None

    def write(self, files: Mapping[str, bytes] = FILES, cgroup: Path = Path("/none")) -> None:
        """Leave what a daemon leaves: daemon.json, the applied state, and the configuration."""
        places = {name: str(self.home / name) for name in ("config", "state", "run", "log")}
        for place in places.values():
            Path(place).mkdir(exist_ok=True)
        for name, data in files.items():
            path = self.home / "config" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        facts = {**places, "cgroup": str(cgroup), "pid": 1, "version": "0.1.0", "depth": 1}
        (self.run / "daemon.json").write_text(json.dumps(facts))
        (self.home / "state" / state.FILE).write_bytes(state.encode(state.Applied("abcdef012345", 0.0, files)))

    def start(self) -> None:
        """Begin to answer."""
        self.run.mkdir(exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.run / "control.sock"))
        self._listener.listen()
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Go away; the socket's file stays, as after a crash."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def __enter__(self) -> FakeDaemon:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer, suppress(BrokenPipeError, ConnectionResetError):
                    self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        with peer.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            return
        try:
            message = decode_request(line)
        except ValueError as e:
            peer.sendall(encode_error(f"not a request: {e}"))
            return
        self.requests.append(message)
        reply = self.replies.get(message.command, ("unknown command", ""))
        if callable(reply):
            reply = reply(message)
        if isinstance(reply, bytes):
            peer.sendall(reply)
        elif isinstance(reply, tuple):
            peer.sendall(encode_error(*reply))
        else:
            peer.sendall(encode_result(reply))
