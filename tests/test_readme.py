"""The README, done: its commands in their order, as typed, on a host of their own; then nothing is left."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.demo.lab import Lab
from test_documents import Fence, fences

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[1]
REFUSED = "bash -c 'echo hello"
"""In the one command that is to fail."""
OTHERS_RUN = ("./agent/try", "./tests/run")

# The lab shares its files with the real host: what the README writes to goes into memory here.
PRIVATE = """
set -e
mkdir {tree}/readme
echo $$ > {tree}/readme/cgroup.procs
exec unshare --cgroup --mount bash -c '
  set -e
  umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
  mkdir /sys/fs/cgroup/rest && echo $$ > /sys/fs/cgroup/rest/cgroup.procs
  mkdir {dir}/over && mount -t tmpfs none {dir}/over
  for name in etc var; do
    mkdir {dir}/over/$name {dir}/over/$name.work
    mount -t overlay overlay -o lowerdir=/$name,upperdir={dir}/over/$name,workdir={dir}/over/$name.work /$name
  done
  rm -rf /etc/penstock /var/lib/penstock /var/log/penstock
  mount -t tmpfs none /run
  exec bash {dir}/steps'
"""
LOGGED = "timeout 10 sh -c 'until [ -s /var/log/penstock/blocks.jsonl ]; do sleep 0.05; done'"
LEFT = "echo left: $(nft list tables; ls -d /sys/fs/cgroup/penstock.slice /{etc,run,var/lib,var/log}/penstock)"
SUDO = '#!/bin/sh\nexec "$@"\n'


def steps() -> list[str]:
    """The shell commands of the README from the first that governs this very host on."""
    lines = [line for fence in fences("README") if fence.kind == "sh" for line in fence.text.splitlines()]
    return [line for line in lines if not any(script in line for script in OTHERS_RUN)]


def script() -> str:
    """Each command, what it printed, and its status; the daemon as if in a terminal of its own."""
    text = ""
    for line in steps():
        if line.endswith("penstock daemon"):
            text += f"{line} &\n"
        elif line.endswith("penstock blocks"):  # a person takes longer than the log does
            text += f"{LOGGED}; {line}; echo status $?\n"
        elif "nft delete table" in line:
            text += f"kill %1; wait; {line}; echo status $?\n"
        else:
            text += f"{line}; echo status $?\n"
    return f"{text}{LEFT}\n"


def shown(word: str) -> Fence:
    """The block of output that starts with that word."""
    return next(fence for fence in fences("README") if fence.kind == "" and fence.text.startswith(word))


def without_times(text: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", text)


def test_as_typed(lab: Lab) -> None:
    shim = lab.dir / "bin/sudo"
    shim.parent.mkdir()
    shim.write_text(SUDO)
    shim.chmod(0o755)
    (lab.dir / "steps").write_text(f"PATH={shim.parent}:$PATH\n{script()}")
    done = lab.host.run(["bash", "-c", PRIVATE.format(tree=lab.cgroup, dir=lab.dir)], cwd=str(ROOT), timeout=60)
    failed = [line for line in steps() if REFUSED in line]
    assert len(failed) == 1
    statuses = [int(status) for status in re.findall(r"^status (\d+)$", done.stdout, re.MULTILINE)]
    wanted = [int(line in failed) for line in steps() if not line.endswith("penstock daemon")]
    assert statuses == wanted, done
    assert "Connection refused" in done.stderr
    block = next(fence for fence in fences("README") if fence.kind == "" and "          allow:" in fence.text)
    assert without_times(block.text) in without_times(done.stdout)
    assert shown("ALLOWED").text in done.stdout
    assert re.findall(r"^left:(.*)$", done.stdout, re.MULTILINE) == [""], done
