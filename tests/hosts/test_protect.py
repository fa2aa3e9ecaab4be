"""`penstock protect` on booted hosts: units, templates and globs as systemd has them, and all that is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from hosts.host import Host
from hosts.installed import Installed, boot
from hosts.world import World

SERVER = """\
#!/usr/bin/python3 -S
import socket, sys, time
listeners = [socket.create_server(("127.0.0.1", int(port))) for port in sys.argv[3:]]
while True:
    time.sleep(60)
"""
"""Stands in for any server: PROGRAM serve --port PORT..."""

UNITS = {
    "ollama.service": "[Service]\nUser=model\nExecStart=/usr/local/bin/ollama serve --port 11434\n"
    "[Install]\nAlias=llm.service\n",
    "open-webui.service": "[Service]\nUser=model\nExecStart=/usr/local/bin/open-webui serve --port 8080\n",
    "vllm@.service": "[Service]\nUser=model\nExecStart=/usr/local/bin/vllm serve --port %i\n",
    "ray-head.service": "[Service]\nUser=model\nExecStart=/usr/local/bin/ray start --port 6379\n",
    "ray-worker.service": "[Service]\nUser=model\nExecStart=/usr/local/bin/ray start --port 10001\n",
}
STARTED = ("ollama", "open-webui", "vllm@8001", "vllm@8002", "ray-head", "ray-worker")
PROGRAMS = ("ollama", "open-webui", "vllm", "ray")

BAD = {
    "masked.service": None,
    "broken.service": "[Service]\nType=simple\n",
    "early.service": "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sleep 60\n",
    "alone.service": "[Service]\nPrivateNetwork=yes\nExecStart=/bin/sleep 60\n",
    "docked.service": "[Service]\nExecStart=/bin/sh -c 'exec docker run --rm model'\n",
    "podded.service": "[Service]\nExecStart=/usr/bin/podman start -a model\n",
    "clash.service": "[Service]\nExecStart=/bin/sleep 60\n",
    "taken.service": "[Service]\nExecStart=/bin/sleep 60\n",
    "penstock-clash.slice": "[Slice]\n",
}


@pytest.fixture(scope="module")
def installed(world: World, older_release: str) -> Installed:
    """Model servers run, and none is protected."""
    made = boot(world, f"p-{older_release}", older_release)
    host = made.host
    host.sh("useradd --system model")
    for name in PROGRAMS:
        host.write(f"/usr/local/bin/{name}", SERVER, 0o755)
    for name, text in UNITS.items():
        host.write(f"/etc/systemd/system/{name}", text)
    host.sh("systemctl daemon-reload; systemctl enable ollama 2>/dev/null; systemctl start " + " ".join(STARTED))
    for port in ("11434", "8080", "8001", "8002", "6379", "10001"):
        host.wait_until(["sh", "-c", f"ss -Hltn sport = :{port} | grep -q ."])
    return made


@pytest.fixture
def clean(installed: Installed) -> Iterator[Installed]:
    """Nothing is protected before, and nothing after."""
    yield installed
    installed.sh(
        "rm -rf /etc/penstock/rules.d/* /etc/systemd/system/*.service.d; systemctl daemon-reload; penstock apply"
    )


def protect(host: Host, *arguments: str) -> dict[str, Any]:
    """`penstock protect --json`."""
    found: dict[str, Any] = json.loads(host.run(["penstock", "protect", "--json", *arguments]).stdout)
    return found


def pids(host: Host) -> str:
    """Main processes of everything that was started."""
    return host.sh(f"systemctl show -p MainPID,ActiveEnterTimestampMonotonic {' '.join(STARTED)}")


def group(host: Host, unit: str) -> str:
    return host.sh(f"systemctl show -P ControlGroup {shlex.quote(unit)}").strip()


def test_nothing_happens_before_it_is_applied_and_the_slice_comes_with_a_restart(clean: Installed) -> None:
    host = clean.host
    said = protect(host, "open-webui")
    assert (said["workload"], said["units"][0]["server"]) == ("open-webui", "open-webui")
    assert said["units"][0]["ports"] == [{"port": 8080, "protocol": "tcp", "local": True}]
    host.run(["penstock", "check", "/etc/penstock"])
    host.sh("systemctl daemon-reload")
    host.run(["systemctl", "try-restart", "open-webui"])
    assert group(host, "open-webui.service") == "/system.slice/open-webui.service", "an unlucky restart"
    before = pids(host)
    host.run(["penstock", "apply"])
    assert clean.wait_for(lambda: clean.workload("open-webui")["enrolment"] == "in-place")
    assert pids(host) == before
    said = protect(host, "open-webui", "--restart")
    assert said["restarted"] == ["open-webui.service"]
    slice_path = "/penstock.slice/penstock-open\\x2dwebui.slice"
    assert group(host, "open-webui.service") == f"{slice_path}/open-webui.service"
    assert clean.wait_for(lambda: clean.workload("open-webui")["enrolment"] == "slice")
    pid, user, bounding = clean.show("open-webui", "MainPID", "User", "CapabilityBoundingSet")
    assert user == "model"
    assert not {"cap_net_raw", "cap_net_admin", "cap_sys_admin"} & set(bounding.split())
    assert "cap_chown" in bounding.split()
    held = next(line for line in host.read(f"/proc/{pid}/status").splitlines() if line.startswith("CapBnd"))
    assert not int(held.split()[1], 16) & (1 << 12 | 1 << 13 | 1 << 21)


def test_an_alias_is_the_unit(clean: Installed) -> None:
    said = protect(clean.host, "llm.service")
    assert (said["workload"], said["match"], said["units"][0]["unit"]) == (
        "ollama", "ollama.service", "ollama.service"
    )  # fmt: skip
    clean.host.run(["penstock", "apply"])
    clean.host.run(["systemctl", "restart", "llm.service"])
    assert group(clean.host, "ollama.service").startswith("/penstock.slice/penstock-ollama.slice/")


def test_a_template_is_all_of_its_instances(clean: Installed) -> None:
    host = clean.host
    said = protect(host, "vllm@.service")
    assert said["match"] == "vllm@*.service"
    assert [one["port"] for one in said["units"][0]["ports"]] == [8001, 8002]
    host.run(["penstock", "apply"])
    host.sh("systemctl restart 'vllm@*.service'; systemctl start vllm@8003")
    for instance in ("8001", "8002", "8003"):
        path = f"/penstock.slice/penstock-vllm.slice/vllm@{instance}.service"
        assert group(host, f"vllm@{instance}.service") == path
    clean.wait_for(lambda: clean.workload("vllm")["processes"] == 3)
    again = protect(host, "vllm@8003")
    assert (again["rules"]["new"], again["written"]) == (False, [])
    assert again["units"][0]["dropin"] == "/etc/systemd/system/vllm@.service.d/50-penstock.conf"
    host.sh("systemctl stop vllm@8003")


def test_one_instance_is_only_that(clean: Installed) -> None:
    host = clean.host
    assert protect(host, "vllm@8001")["match"] == "vllm@8001.service"
    host.run(["penstock", "apply"])
    host.sh("systemctl restart 'vllm@*.service'")
    assert group(host, "vllm@8001.service").startswith("/penstock.slice/penstock-vllm.slice/")
    assert not group(host, "vllm@8002.service").startswith("/penstock.slice/")
    refused = host.run(["penstock", "protect", "vllm@8002"], check=False)
    assert refused.returncode == 1
    assert "there is a workload vllm already, and it does not match vllm@8002.service" in refused.stderr


def test_a_glob_is_all_that_match(clean: Installed) -> None:
    host = clean.host
    said = protect(host, "ray*.service")
    assert [one["unit"] for one in said["units"]] == ["ray-head.service", "ray-worker.service"]
    host.run(["penstock", "apply"])
    host.sh("systemctl restart ray-head ray-worker")
    for unit in ("ray-head.service", "ray-worker.service"):
        assert group(host, unit) == f"/penstock.slice/penstock-ray.slice/{unit}"


def test_again_is_harmless(clean: Installed) -> None:
    host = clean.host
    protect(host, "ollama")
    everything = "tar -c /etc/penstock /etc/systemd | sha256sum"
    before = host.sh(everything)
    said = protect(host, "ollama")
    assert (said["written"], said["rules"]["new"]) == ([], False)
    assert host.sh(everything) == before


# --- what is refused ---


@pytest.fixture(scope="module")
def bad(installed: Installed) -> Host:
    """Units that cannot be protected."""
    host = installed.host
    for name, text in BAD.items():
        if text is None:
            host.sh(f"ln -sf /dev/null /etc/systemd/system/{name}")
        else:
            host.write(f"/etc/systemd/system/{name}", text)
    host.sh("mkdir -p /etc/systemd/system/taken.service.d")
    host.write("/etc/systemd/system/taken.service.d/50-penstock.conf", "[Service]\nNice=1\n")
    header = "### BEGIN INIT INFO\n# Provides: ancient\n### END INIT INFO\n"
    host.write("/etc/init.d/ancient", f"#!/bin/sh\n{header}", 0o755)
    host.sh("systemctl daemon-reload; systemd-run --unit=passing sleep 600 2>/dev/null")
    return host


REFUSED = [
    ("none.service", "there is no unit none.service; see: systemctl list-unit-files --type=service"),
    ("none*", "no service matches none*.service"),
    ("none@.service", "there is no unit none@.service"),
    ("a/b.service", "cannot be the name of a unit"),
    ("masked", "masked.service is masked: it cannot start"),
    ("broken", "systemd cannot load broken.service"),
    ("ancient", "is generated anew at each boot (/run/systemd/generator"),
    ("passing", "passing.service is transient"),
    ("early", "starts before the host is up"),
    ("alone", "alone.service has a network of its own"),
    ("docked", "docked.service only runs docker"),
    ("podded", "podded.service only runs /usr/bin/podman"),
    ("system.slice", "system.slice is a slice, and only a service can be protected"),
    ("dbus.socket", "dbus.socket is a socket"),
    ("systemd-logind", "is a part of the system itself"),
    ("penstock", "is a part of penstock itself"),
    ("penstock-floor", "is a part of penstock itself"),
    ("clash", "there is a slice penstock-clash.slice already, which is not from penstock"),
    ("taken", "/etc/systemd/system/taken.service.d/50-penstock.conf: is not from penstock"),
]


def refused(host: Host, argv: list[str]) -> str:
    """What is said on one line; nothing has changed."""
    look = "find /etc /usr/lib/systemd /run/penstock | sort; nft -s list ruleset"
    before = host.sh(look)
    done = host.run(argv, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done
    assert host.sh(look) == before
    return done.stderr


@pytest.mark.parametrize(("unit", "text"), REFUSED)
def test_one_sentence_and_nothing_changed(bad: Host, unit: str, text: str) -> None:
    said = refused(bad, ["penstock", "protect", unit])
    assert text in said
    assert said.startswith("penstock: ")


def test_without_systemd_or_root(bad: Host) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run/systemd; exec "$@"', "sh"]
    assert "this host is not run by systemd" in refused(bad, [*hidden, "penstock", "protect", "ollama"])
    done = bad.run(["penstock", "protect", "ollama"], check=False, user="model")
    assert (done.returncode, done.stderr) == (1, "penstock: only root may protect a unit; run it with sudo\n")


def test_a_read_only_etc(bad: Host) -> None:
    script = 'mount --bind /etc /etc; mount -o remount,ro,bind /etc; exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", "penstock", "protect", "ollama"]
    assert "cannot be written: Read-only file system; nothing was changed" in refused(bad, argv)
