"""What vagrant/ runs on stock distributions, in a booted host: the provisioning script and the scenario."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from conftest import cannot_run
from hosts import bundle
from hosts.host import Host
from hosts.world import World

ROOT = Path(__file__).parents[2]
VAGRANTFILE = ROOT / "vagrant/Vagrantfile"
STEPS = 11


def test_every_step_is_ok(some_host: Host) -> None:
    place = bundle.put(some_host)
    some_host.copy_in(ROOT / "vagrant", "/penstock/vagrant")
    some_host.copy_in(ROOT / "tests/hosts/scenario.py", "/penstock/tests/hosts/scenario.py")
    done = some_host.run(["/penstock/vagrant/provision.sh", place], check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ok  ", done.stdout, re.MULTILINE)) == STEPS, done.stdout
    assert done.stdout.endswith("all ok\n")


FAKE = """#!/bin/sh
mkdir -p /etc/penstock/rules.d
echo '{"workloads": [], "findings": []}'
"""


def test_a_step_that_fails_fails_the_provisioning(world: World) -> None:
    """The same without a firewall: all fail but those that say that everything is open."""
    host = world.boot("control")
    host.copy_in(ROOT / "tests/hosts/scenario.py", "/opt/scenario.py")
    host.write("/usr/bin/penstock", FAKE, 0o755)
    env = {"PENSTOCK_SCENARIO_WAIT": "0.3"}  # the fake says the same however often it is asked
    done = host.run(["python3", "/opt/scenario.py"], check=False, timeout=180, env=env)
    assert done.returncode == 1
    failed = re.findall(r"^FAIL  ([^:]+)", done.stdout, re.MULTILINE)
    assert len(failed) == STEPS - 2, done.stdout


def test_the_vagrantfile_is_ruby() -> None:
    if shutil.which("ruby") is None:
        cannot_run("needs ruby")
    done = subprocess.run(["ruby", "-c", VAGRANTFILE], capture_output=True, text=True)
    assert done.stdout == "Syntax OK\n", done.stderr


def test_it_names_the_distributions_that_are_promised() -> None:
    machines = re.findall(r'^  "(\w+)" => "[\w/.-]+",$', VAGRANTFILE.read_text(), re.MULTILINE)
    assert machines == ["debian12", "debian13", "ubuntu2204", "ubuntu2404", "rocky9"]
