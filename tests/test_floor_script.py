"""The script that loads the floor: a whole file is loaded, anything else is not, and it always ends with 0."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from governed import Actor
from penstock.core import floor, label_bits
from penstock.core.compile import Live, compile_policy
from penstock.core.parse import parse
from penstock.core.policy import Policy
from penstock.core.slices import SLICE, slice_of
from penstock.demo.lab import Lab
from test_examples import NOW

pytestmark = pytest.mark.root

SCRIPT = Path(__file__).parents[1] / "systemd/floor.sh"
DEPTH = 2
"""Level of penstock.slice in a lab, which is a directory of the cgroup root."""
WORKLOAD = "open-webui"
RULES = f"version: 1\nworkload: {WORKLOAD}\nmode: enforce\negress: []\ningress: []\n"
TOOLS = ("sed", "head", "tail", "wc", "tr", "sha256sum", "mkdir", "mv", "timeout")
FAMILIES = [pytest.param("127.0.0.1", id="v4"), pytest.param("::1", id="v6")]


def live(lab: Lab, labels: Mapping[str, int]) -> Live:
    return Live(NOW, labels, DEPTH, slice=f"{lab.name}/penstock.slice")


def good(lab: Lab) -> bytes:
    """The floor of a policy with one workload."""
    policy = parse({"rules.d/w.yaml": RULES.encode()}).policy
    assert policy
    ruleset = compile_policy(policy, live(lab, {WORKLOAD: label_bits.FIRST_LABEL}))
    return floor.text(ruleset, (WORKLOAD,), "0123abc", lab.name)


def signed(body: bytes) -> bytes:
    """With a first line that fits."""
    return b"# penstock floor 1 sha256:" + sha256(body).hexdigest().encode() + b"\n" + body


class Floor:
    """The script on a lab, with directories of its own."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab = lab
        self.state, self.run, self.lib = place / "state", place / "run", place / "lib"
        for directory in (self.state, self.lib):
            directory.mkdir()
        deny = floor.text(compile_policy(Policy(), live(lab, {})), (), floor.NO_POLICY, lab.name)
        (self.lib / "floor-deny.nft").write_bytes(deny)
        (self.state / "applied.json").write_text("{}")
        self.path = ""

    def load(self, data: bytes | None, *arguments: str) -> tuple[str, str]:
        """What it left in the run directory, and on stderr."""
        file = self.state / "floor.nft"
        file.unlink(missing_ok=True)
        if data is not None:
            file.write_bytes(data)
        env = {"PENSTOCK_STATE": str(self.state), "PENSTOCK_RUN": str(self.run), "PENSTOCK_LIB": str(self.lib)}
        if self.path:
            env["PATH"] = self.path
        done = self.lab.host.run(["/bin/sh", SCRIPT, *arguments], env=env)
        told = self.run / "floor"
        assert done.stdout == ""
        return told.read_text() if told.exists() else "", done.stderr

    def chains(self) -> str:
        """The table, "" without one."""
        return self.lab.host.run(["nft", "list", "table", "inet", "penstock"], check=False).stdout


@pytest.fixture
def script(lab: Lab, tmp_path: Path) -> Iterator[Floor]:
    yield Floor(lab, tmp_path)
    lab.host.run(["nft", "flush", "ruleset"])
    remove = ["-depth", "-type", "d", "-name", "penstock*", "-exec", "rmdir", "{}", "+"]
    lab.host.run(["find", lab.cgroup / SLICE, *remove], check=False)


def test_a_whole_file_is_loaded(script: Floor) -> None:
    told, said = script.load(good(script.lab))
    assert told == "loaded 0123abc\n"
    assert said == "<6>penstock floor: loaded policy 0123abc\n"
    assert f"chain out_{WORKLOAD}" in script.chains()
    for path in (SLICE, slice_of(WORKLOAD)):
        script.lab.host.run(["test", "-d", script.lab.cgroup / path])
    assert script.run.stat().st_mode & 0o777 == 0o700


_listening: list[socket.socket] = []


def listen(address: str) -> int:
    """In an actor: accept connections; returns the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    _listening.append(socket.create_server((address, 0), family=family))
    return int(_listening[-1].getsockname()[1])


def accepted() -> bool:
    """In that actor: whether one came, and take it.  On loopback it is there before the caller hears of it."""
    _listening[-1].settimeout(0.2)
    try:
        _listening[-1].accept()[0].close()
    except TimeoutError:
        return False
    return True


def knock(address: str, port: int) -> None:
    """Try to connect."""
    with contextlib.suppress(OSError):
        socket.create_connection((address, port), timeout=1).close()


@pytest.mark.parametrize("address", FAMILIES)
def test_without_a_good_file_governed_processes_are_denied(script: Floor, address: str) -> None:
    script.load(None)
    with Actor(script.lab.host) as server:
        port = server(listen, address)
        for cgroup, arrives in ((None, True), (f"{SLICE}/penstock-stranger.slice", False), (SLICE, False)):
            with Actor(script.lab.host, cgroup) as client:
                client(knock, address, port)
            assert server(accepted) == arrives, cgroup


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-40],
    "half": lambda data: data[: len(data) // 2],
    "first line only": lambda data: data.partition(b"\n")[0] + b"\n",
    "bit flip": lambda data: data[:300] + bytes([data[300] ^ 4]) + data[301:],
    "bit flip in the sum": lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:],
    "grown": lambda data: data + b"flush ruleset\n",
    "garbage": lambda data: bytes(range(256)) * 64,
    "zeroes": lambda data: bytes(4096),
    "another format": lambda data: signed(data.partition(b"\n")[2]).replace(b"floor 1", b"floor 2"),
    "no policy": lambda data: signed(data.partition(b"\n")[2].replace(b"# policy ", b"# police ", 1)),
    "not nft": lambda data: signed(b"# policy x\nhello\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_denies_everything_loudly(script: Floor, damage: str) -> None:
    script.load(good(script.lab))
    told, said = script.load(DAMAGES[damage](good(script.lab)))
    assert told.startswith("deny-all ")
    assert told.count("\n") == 1
    assert said.startswith("<3>penstock floor: ")
    assert "floor.nft" in told
    assert f"goto out_{WORKLOAD}" not in script.chains()
    assert "goto governed_out" in script.chains()


BAD_PATHS = (
    "../penstock.slice", "penstock.slice/..", "penstock.slice/../x", "/penstock.slice", "penstock.slice/",
    "penstock.slice//x", "system.slice", "penstock.slicer", "penstock.slice/.hidden", ".", "",
    "penstock.slice/a b", "penstock.slice/$(touch x)", "penstock.slice/\t", "penstock.slice/é", "penstock.slice/*",
)  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_only_cgroups_of_ours_are_made(script: Floor, path: str) -> None:
    body = f"# policy x\n# cgroup {script.lab.name}/{path}\nadd table inet penstock\n".encode()
    if path.startswith("/"):
        body = body.replace(f"{script.lab.name}/".encode(), b"")
    told, _ = script.load(signed(body))
    assert told == f"deny-all a cgroup of {script.state}/floor.nft cannot be made\n"
    made = script.lab.host.run(["find", script.lab.cgroup, "-mindepth", "1", "-type", "d"]).stdout
    assert {Path(line).name for line in made.splitlines()} <= {"others.slice", SLICE}, "of the deny-all file"


def test_a_file_that_nft_refuses_is_told_in_one_line(script: Floor) -> None:
    body = b"# policy x\nadd table inet penstock\nadd rule inet penstock \x1b[31m\xff nowhere\nmore\n"
    told, said = script.load(signed(body))
    assert "nft refused" in told
    assert told.isascii()
    assert told.rstrip("\n").isprintable()
    assert said.count("\n") == 1


def test_nothing_applied_yet_is_no_mishap(script: Floor) -> None:
    (script.state / "applied.json").unlink()
    assert script.load(None) == ("loaded none\n", "<6>penstock floor: loaded policy none\n")
    assert "goto governed_out" in script.chains()


def test_without_its_state_directory_it_is_one(script: Floor) -> None:
    script.state = script.state.with_name("elsewhere")
    script.state.mkdir()
    told, _ = script.load(None)
    script.state.rmdir()
    assert told == "loaded none\n"
    env = {"PENSTOCK_STATE": str(script.state), "PENSTOCK_RUN": str(script.run), "PENSTOCK_LIB": str(script.lib)}
    script.lab.host.run(["/bin/sh", SCRIPT], env=env)
    assert (script.run / "floor").read_text().startswith("deny-all there is no ")


def without(name: str, place: Path) -> str:
    """A PATH with all that the script uses but one program."""
    place.mkdir()
    for tool in (*TOOLS, "nft"):
        found = shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if tool != name and found:
            (place / tool).symlink_to(found)
    return str(place)


def test_without_nft_it_ends_well_and_says_so(script: Floor, tmp_path: Path) -> None:
    script.path = without("nft", tmp_path / "bin")
    told, said = script.load(good(script.lab))
    assert told.startswith("failed nft refused")
    assert "NO RULES ARE LOADED" in said
    assert said.startswith("<2>")


@pytest.mark.parametrize("tool", TOOLS)
def test_without_a_tool_it_loads_or_says_so(script: Floor, tmp_path: Path, tool: str) -> None:
    script.path = without(tool, tmp_path / "bin")
    told, said = script.load(good(script.lab))
    assert said
    assert script.chains() or "NO RULES ARE LOADED" in said
    assert told.startswith(("loaded 0123abc", "deny-all ", "failed ")) or tool in ("mv", "mkdir")


def test_a_run_directory_that_cannot_be_written_to_changes_nothing_else(script: Floor) -> None:
    script.run.write_text("no directory")
    script.run = script.run / "x"
    told, said = script.load(good(script.lab))
    assert told == ""
    assert "<4>penstock floor: could not write" in said
    assert f"chain out_{WORKLOAD}" in script.chains()


def test_a_run_directory_that_somebody_makes_meanwhile_is_used(script: Floor, tmp_path: Path) -> None:
    """As systemd-tmpfiles may, between the look and our own mkdir."""
    late = tmp_path / "late/mkdir"
    late.parent.mkdir()
    late.write_text('#!/bin/sh\n/bin/mkdir "$@"\ncase "$*" in *run) exec false ;; esac\n')
    late.chmod(0o755)
    script.path = f"{late.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    told, _ = script.load(good(script.lab))
    assert told == "loaded 0123abc\n"


def test_again_leaves_to_the_daemon_what_it_has_mended(script: Floor) -> None:
    script.load(good(script.lab))
    (script.run / "lock").touch()
    holder = script.lab.host.popen(
        ["flock", "-F", script.run / "lock", "sh", "-c", "echo held; exec sleep 100"], stdout=subprocess.PIPE
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    script.lab.host.run(["nft", "add", "chain", "inet", "penstock", "newer"])
    (script.run / "floor").unlink()
    assert script.load(good(script.lab), "again") == ("", "")
    assert "chain newer" in script.chains()
    script.lab.host.run(["nft", "flush", "ruleset"])
    assert script.load(good(script.lab), "again")[0] == "loaded 0123abc\n", "a daemon that hangs mends nothing"
    holder.kill()
    holder.wait()
    script.lab.host.run(["nft", "insert", "rule", "inet", "penstock", "output", "accept"])
    assert script.load(good(script.lab), "again")[0] == "loaded 0123abc\n"
    rules = script.lab.host.run(["nft", "list", "chain", "inet", "penstock", "output"]).stdout
    assert "accept" not in rules.replace("policy accept", "")


OBSTACLES = {
    "a set of another type": "add set inet penstock out4_{} {{ type ipv4_addr ; }}",
    "a base chain at another hook": "add chain inet penstock input {{ type filter hook forward priority 0 ; }}",
    "a base chain of that name": "add chain inet penstock told {{ type filter hook forward priority 0 ; }}",
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_something_else_under_one_of_our_names_goes_first(script: Floor, obstacle: str) -> None:
    script.lab.host.run(["nft", "flush", "ruleset"])
    script.lab.host.run(["nft", f"add table inet penstock; {OBSTACLES[obstacle].format(WORKLOAD)}"])
    assert script.load(good(script.lab))[0] == "loaded 0123abc\n"
    assert f"goto out_{WORKLOAD}" in script.chains()
