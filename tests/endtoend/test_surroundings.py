"""Bad surroundings: one sentence with a remedy and status 1, no traceback, nothing half loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.running import Running, latest
from governed import Actor, eventually
from penstock.core.blocks import LOG_NAME
from penstock.demo import namespaces
from penstock.errors import PenstockError
from penstock.kernel.nflog import NflogReader

pytestmark = pytest.mark.root

ALLOWED = "[{to: 198.51.100.10, ports: [80]}]"
MISTAKES = "version: 1\nworkload: a\nmode: enforced\negress: [{to: nowhere, ports: [80]}]\nlisten: []\n"
CAP_NET_ADMIN = 12


@pytest.fixture(autouse=True)
def one_workload(running: Running) -> None:
    running.rules("a")


def one_sentence(text: str, *words: str) -> None:
    """Not more than that, and it says what to do."""
    assert text.count("\n") == 1, text
    assert text.startswith("penstock: ")
    assert "; " in text
    for word in words:
        assert word in text


def nothing_loaded(running: Running) -> None:
    assert running.ruleset() == ""
    assert not running.asker(os.path.exists, running.path())


def test_not_root(running: Running) -> None:
    done = running.lab.host.run([sys.executable, "-c", _AS_NOBODY, *running.argv[2:]], check=False)
    assert done.returncode == 1
    one_sentence(done.stderr, "needs root", "sudo")
    nothing_loaded(running)


def test_without_the_capability(running: Running) -> None:
    done = running.lab.host.run([sys.executable, "-c", _WITHOUT_NET_ADMIN, *running.argv], check=False)
    assert done.returncode == 1
    one_sentence(done.stderr, "root")
    nothing_loaded(running)


def test_without_libnftables(running: Running) -> None:
    library = running.lab.dir / "lib"
    library.mkdir()
    (library / "libnftables.so.1").write_text("no library")
    one_sentence(running.refused(env={"LD_LIBRARY_PATH": str(library)}), "libnftables", "apt-get install nftables")
    nothing_loaded(running)


def test_mixed_cgroups(running: Running) -> None:
    """Without cgroup v2 at the usual place, penstock does not guess where the tree is."""
    running.tree = None
    with _mounted(running, "tmpfs", Path("/sys/fs/cgroup")):
        text = running.refused()
    one_sentence(text, "cgroup", "--cgroup")
    nothing_loaded(running)


@pytest.mark.parametrize("where", ["/proc", "/nowhere", "relative"])
def test_a_tree_that_is_none(where: str, running: Running) -> None:
    running.tree = Path(where)
    one_sentence(running.refused(), "is not in a cgroup v2 tree")
    nothing_loaded(running)


def test_log_group_taken(running: Running) -> None:
    with Actor(running.lab.host) as other:
        other(_take_log_group)
        one_sentence(running.refused(), "another process reads it", "ulogd")
    nothing_loaded(running)


@pytest.mark.parametrize("which", ["state", "run"])
def test_full_disk_at_the_start(which: str, running: Running) -> None:
    with _small_disk(running, which) as fill:
        running.asker(getattr(running, which).mkdir, 0o700)
        fill(True)
        text = running.refused()
        one_sentence(text, str(getattr(running, which)), "No space left on device")
    nothing_loaded(running)


def test_log_that_cannot_be_opened(running: Running) -> None:
    """No reason to leave workloads ungoverned."""
    (running.log / "blocks.jsonl").mkdir(parents=True)
    running.up()
    assert running.findings() == {"log-unwritable"}
    (running.log / "blocks.jsonl").rmdir()
    with running.actor() as workload:
        workload(_call, running.lab.remote["stranger"].v4, 1)
        eventually(lambda: running.findings() <= {"root"})
    assert "Traceback" not in running.messages()


def test_full_disk_during_apply(running: Running) -> None:
    with _small_disk(running, "state") as fill:
        running.up()
        before, applied = running.snapshot(), running.ask("status")["policy"]["hash"]
        fill(True)
        running.rules("a", ALLOWED)
        with pytest.raises(PenstockError, match="No space left on device") as refused:
            running.ask("apply")
        assert str(running.state) in str(refused.value)
        assert "the last good policy stays in force" in str(refused.value)
        assert running.snapshot().sets == before.sets
        status = running.ask("status")["policy"]
        assert (status["hash"], status["pending_files"]) == (applied, 1)
        running.stop(signal.SIGKILL)
        running.up()
        assert running.ask("status")["policy"]["hash"] == applied
        fill(False)
        assert running.ask("apply")["changed"]
    assert "Traceback" not in running.messages()


def test_full_disk_while_logging(running: Running) -> None:
    stranger = running.lab.remote["stranger"].v4
    with _small_disk(running, "log") as fill, running.actor() as workload:
        running.up()
        fill(True)
        for port in range(1, 21):  # more than what fits into the page that an empty file has
            workload(_call, stranger, port)
        eventually(lambda: "log-unwritable" in running.findings())
        assert running.status()["egress"] == "enforcing"  # what is logged decides nothing
        fill(False)
        workload(_call, stranger, 99)
        eventually(lambda: "log-unwritable" not in running.findings())
        assert running.stop() == 0
        told = sum(block["count"] + block["unlogged"] for block in running.asker(_blocks, running.log / LOG_NAME))
        assert 0 < told <= running.counter("denied_out_a")
    assert "Traceback" not in running.messages()


def test_full_disk_at_the_end(running: Running) -> None:
    with _small_disk(running, "log") as fill, running.actor() as workload:
        running.up()
        fill(True)
        for port in range(1, 21):
            workload(_call, running.lab.remote["stranger"].v4, port)
        assert running.stop() == 0
    assert "Traceback" not in running.messages()


def test_full_disk_under_the_books(running: Running) -> None:
    with _small_disk(running, "state") as fill, running.actor() as workload:
        running.up()
        fill(True)
        workload(_call, running.lab.remote["stranger"].v4, 1)
        eventually(lambda: "state-unwritable" in running.findings())
        assert running.status()["egress"] == "enforcing"
        fill(False)
        workload(_call, running.lab.remote["stranger"].v4, 1)
        eventually(lambda: "state-unwritable" not in running.findings())


def test_run_directory_that_cannot_be_written(running: Running) -> None:
    running.home.joinpath("file").write_text("")
    running.run = running.home / "file/run"
    one_sentence(running.refused(), str(running.run))
    nothing_loaded(running)


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "empty"])
def test_no_configuration(missing: bool, running: Running) -> None:
    shutil.rmtree(running.config)
    if not missing:
        running.config.mkdir()
    text = "there is no such directory" if missing else "holds no rule files"
    one_sentence(running.refused(), str(running.config), text)
    nothing_loaded(running)


def test_mistakes_at_the_first_start(running: Running) -> None:
    running.write("rules.d/a.yaml", MISTAKES)
    running.write("rules.d/b.yaml", "version: 2\n")
    text = running.refused()
    for place in ("a.yaml:3:", "a.yaml:4:", "a.yaml:5:", "b.yaml:1:"):
        assert f"rules.d/{place}" in text
    nothing_loaded(running)


def test_mistakes_at_apply(running: Running) -> None:
    running.rules("a", ALLOWED)
    running.up()
    before = running.snapshot()
    running.write("rules.d/a.yaml", MISTAKES)
    answer = running.ask("apply")
    assert (answer["changed"], answer["refused"]) == (False, True)
    assert {problem["line"] for problem in answer["problems"]} >= {3, 4, 5}
    assert running.snapshot() == before
    assert running.status()["egress"] == "enforcing"
    shutil.rmtree(running.config)
    with pytest.raises(PenstockError, match="there is no such directory"):
        running.ask("apply")
    running.config.mkdir()
    with pytest.raises(PenstockError, match="holds no rule files"):
        running.ask("apply")
    assert running.snapshot() == before


def test_a_damaged_state_file(running: Running) -> None:
    """The configuration takes its place, loudly."""
    running.up()
    running.stop()
    running.rules("a", ALLOWED)
    (running.state / "applied.json").write_text('{"penstock": 1, "hash"')
    running.up()
    assert "the saved state is damaged" in running.messages()
    assert running.ask("status")["policy"]["pending_files"] == 0
    assert running.saved().files


def test_a_damaged_state_file_and_mistakes(running: Running) -> None:
    """Nothing can be loaded, so what the kernel holds stays."""
    running.up()
    running.stop()
    before = running.snapshot()
    running.write("rules.d/a.yaml", MISTAKES)
    (running.state / "applied.json").write_bytes(b"\x00\xff")
    text = running.refused()
    assert "rules.d/a.yaml:3:" in text
    assert running.snapshot() == before


_AS_NOBODY = """
import os, sys
from penstock.cli.main import main
import penstock.cli.daemon, penstock.cli.format, penstock.daemon.app  # nobody may not read the checkout
os.setgroups([]), os.setgid(65534), os.setuid(65534)
del sys.argv[1]
main()
"""
_WITHOUT_NET_ADMIN = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(24, {CAP_NET_ADMIN}, 0, 0, 0) == 0  # PR_CAPBSET_DROP, for the program that follows
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def _mounted(running: Running, kind: str, where: Path, data: str = "") -> Iterator[None]:
    """Something mounted over `where` in the lab."""
    running.lab.host.call(namespaces.mount, kind, str(where), kind, 0, data)
    try:
        yield
    finally:
        running.lab.host.call(_unmount, where)


@contextmanager
def _small_disk(running: Running, which: str) -> Iterator[Callable[[bool], None]]:
    """That directory on a disk of a few KiB; the function fills it, or makes room again."""
    disk = running.home / "disk"
    disk.mkdir(parents=True)
    setattr(running, which, disk / which)
    with _mounted(running, "tmpfs", disk, "size=128k,mode=700"):
        yield lambda full: running.asker(_fill if full else os.unlink, disk / "filler")
        if running.alive:
            running.stop(signal.SIGKILL)


# --- in actors ---


def _unmount(where: Path) -> None:
    if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(where), 2):  # MNT_DETACH
        raise OSError(ctypes.get_errno(), "umount", str(where))


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _blocks(path: Path) -> list[dict[str, Any]]:
    return latest(path.read_text())


_readers: list[NflogReader] = []


def _take_log_group() -> None:
    _readers.append(NflogReader())


def _call(address: str, port: int) -> None:
    with socket.socket() as sock:
        sock.connect_ex((address, port))
