"""The lifecycle contract: a test for each line of the table in `agent/penstock/manual/lifecycle.md`.

All on one installed host whose governed server never stops sending (`steady`); each test leaves it as it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import pytest

from hosts.installed import image
from hosts.outside import REGISTRY, STRANGER
from hosts.rootfs import RELEASES
from hosts.steady import OPEN, PORT, RULES, UNIT, Steady, rules
from hosts.world import World
from pace import slow

SLICE = "penstock.slice/penstock-model.slice"
STATE, LOG = "/var/lib/penstock", "/var/log/penstock"
FLOOR = f"{STATE}/floor.nft"
FLUSHES = {
    "everything": "nft flush ruleset",
    "the table": "nft delete table inet penstock",
    "the slice": "nft flush chain inet penstock output",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each release with --full, else the older one."""
    if "steady" in metafunc.fixturenames:
        some = RELEASES if metafunc.config.getoption("--full") else RELEASES[:1]
        metafunc.parametrize("steady", some, indirect=True, scope="module")


@pytest.fixture(scope="module")
def steady(world: World, request: pytest.FixtureRequest) -> Steady:
    """The host, of one release."""
    host = world.boot(request.param, request.param, image=image(request.param))
    host.sh("firewall-offline-cmd --set-default-zone=trusted")  # what it denies must not be taken for our work
    made = Steady(world, host)
    made.enrol()
    return made


# --- the agent goes ---


def test_stopped(steady: Steady) -> None:
    with steady.ruled():
        steady.host.sh("systemctl stop penstock.service")
        steady.wait_beats(200)
        asked = steady.host.run(["penstock", "status"], check=False)
        assert asked.returncode == 2
        assert "no daemon" in asked.stderr, asked.stderr
        steady.is_ruled()
        steady.host.sh("systemctl start penstock.service")
        steady.in_force()


@pytest.mark.parametrize("signal", ["SEGV", "ABRT"])
def test_crashed(steady: Steady, signal: str) -> None:
    with steady.ruled():
        print(f"back and enforcing {steady.another_daemon(steady.kill(signal)):.1f} s after SIG{signal}")


def test_killed(steady: Steady) -> None:
    for _ in range(2):
        with steady.ruled():
            print(f"back and enforcing {steady.another_daemon(steady.kill('KILL')):.1f} s after SIGKILL")


def test_hung(steady: Steady) -> None:
    """As shipped the watchdog waits for a minute."""
    host = steady.host
    assert steady.shown("penstock.service", "WatchdogUSec") == "1min"
    drop_in = "/run/systemd/system/penstock.service.d/watchdog.conf"
    host.write(drop_in, "[Service]\nWatchdogSec=5\n")
    host.sh("systemctl daemon-reload; systemctl restart penstock.service")
    try:
        with steady.ruled():
            start = time.monotonic()
            pid = steady.kill("STOP")
            asked = host.run(["penstock", "status"], check=False)
            print(f"status of one that hangs, after {time.monotonic() - start:.1f} s: {asked.stderr.strip()}")
            assert asked.returncode == 2
            steady.another_daemon(pid)
            print(f"hung with WatchdogSec=5: back and enforcing after {time.monotonic() - start:.1f} s")
            assert time.monotonic() - start < 15
    finally:
        host.sh(f"rm {drop_in}; systemctl daemon-reload; systemctl restart penstock.service")
        steady.in_force()


# --- what it finds when it starts ---


def test_rule_files_broken_at_boot(steady: Steady) -> None:
    host, good = steady.host, steady.status()["policy"]["hash"]
    host.write(RULES, "version: 1\nworkload: [\n")
    host.reboot()
    status = steady.in_force()
    steady.is_ruled()
    assert status["policy"]["hash"] == good
    host.wait_until(lambda: "files-broken" in steady.findings())
    steady.says("the rule files have", level="err")
    refused = host.run(["penstock", "apply"], check=False)
    assert refused.returncode == 1
    assert f"{good} stays in force" in refused.stderr
    steady.apply(rules())
    assert "files-broken" not in steady.findings()


def test_saved_state_damaged(steady: Steady) -> None:
    """The one before it is used; without any the configuration is read."""
    host, good = steady.host, steady.status()["policy"]["hash"]
    steady.apply(rules("  - {to: [192.0.2.77], ports: [443]}\n"))
    assert steady.status()["policy"]["hash"] != good
    host.write(RULES, rules())
    try:
        for damaged, hash_then in (("applied.json", good), ("applied*.json", good)):
            with steady.ruled():
                host.sh(f"for file in {STATE}/{damaged}; do echo nonsense >$file; done")
                host.sh("systemctl restart penstock.service")
                status = steady.in_force()
                assert status["policy"]["hash"] == hash_then
                print(damaged, steady.findings())
                assert "state-damaged" in steady.findings()
        steady.says("the saved state is damaged", level="err")
    finally:
        steady.apply(rules(comment="again"))
        steady.apply(rules())
        assert "state-damaged" not in steady.findings()


DAMAGES = {
    "missing": f"rm {FLOOR}",
    "truncated": f"truncate -s -100 {FLOOR}",
    "bit-flipped": f"sed -i 's/{REGISTRY[0]}/203.0.113.4/' {FLOOR}",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_floor_file_damaged(steady: Steady, damage: str) -> None:
    """At a boot without the agent; then the agent comes."""
    host = steady.host
    before = host.read(FLOOR)
    with agent_masked(steady):
        host.sh(DAMAGES[damage])
        host.reboot()
        assert steady.shown("penstock-floor.service", "ActiveState") == "active"
        assert steady.shown(UNIT, "ActiveState") == "active"
        said = host.read("/run/penstock/floor")
        print(said.strip())
        assert said.startswith("deny-all ")
        steady.is_shut()
        steady.says("denied everything", "penstock-floor.service", level="err")
    steady.in_force()
    steady.is_ruled()
    assert "floor-fallback" in steady.findings()
    assert host.read(FLOOR) == before


def test_floor_file_damaged_and_the_agent_comes(steady: Steady) -> None:
    """As in life: the floor denies all, and a moment later the agent loads the policy."""
    host = steady.host
    host.sh(DAMAGES["bit-flipped"])
    start, mark = time.monotonic(), steady.world.outside.mark()
    host.reboot()
    steady.in_force()
    steady.wait_beats()
    seen = steady.seen(mark, start)
    assert seen.leaked == seen.intruded == 0, seen
    steady.is_ruled()
    assert "floor-fallback" in steady.findings()
    host.reboot()
    steady.in_force()
    steady.is_ruled()
    assert "floor-fallback" not in steady.findings()


def test_nft_missing_at_boot(steady: Steady) -> None:
    """The one thing that the floor cannot do without; the agent can, it has the library."""
    host = steady.host
    with agent_masked(steady):
        host.sh("mv /usr/sbin/nft /usr/sbin/nft.gone")
        try:
            host.reboot()
            assert steady.shown("penstock-floor.service", "ActiveState") == "active"
            assert steady.shown(UNIT, "ActiveState") == "active"
            assert host.read("/run/penstock/floor").startswith("failed ")
            steady.says("NO RULES ARE LOADED", "penstock-floor.service", level="crit")
            steady.is_open()
            host.sh("systemctl unmask penstock.service; systemctl start penstock.service")
            steady.in_force()
            steady.is_ruled()
            assert "loaded nothing" in steady.findings()["floor-fallback"]
        finally:
            host.sh("mv /usr/sbin/nft.gone /usr/sbin/nft")
    host.reboot()
    steady.in_force()
    steady.is_ruled()


@contextmanager
def agent_masked(steady: Steady) -> Iterator[None]:
    """Nobody but a person starts it; it comes back at the end."""
    host = steady.host
    host.sh("systemctl mask penstock.service")
    try:
        yield
    finally:
        host.sh("systemctl unmask penstock.service; systemctl start penstock.service")
    steady.in_force()


# --- others change our rules ---


@pytest.mark.parametrize("what", FLUSHES)
def test_flushed_and_the_agent_is_there(steady: Steady, what: str) -> None:
    host, pid = steady.host, steady.shown(UNIT, "MainPID")
    steady.is_ruled()
    start = time.time()
    seconds, packets = steady.open_for(lambda: host.sh(FLUSHES[what]))
    print(f"{what}: open for {seconds * 1000:.0f} ms, {packets} packets left")
    assert seconds < slow(1)
    steady.in_force()
    steady.is_ruled()
    assert "'nft'" in steady.findings()["foreign-change"]
    steady.says("; repairing", level="err", since=start)
    assert steady.shown(UNIT, "MainPID") == pid


def test_address_deleted_and_the_agent_is_there(steady: Steady) -> None:
    """What is taken from a set that allows is missed for a moment, and nothing else opens or closes."""
    elements = [(f"out{n}_model", a) for n, a in zip((4, 6), REGISTRY, strict=True)]
    lines = [f"delete element inet penstock {name} {{ {a} . udp . {PORT} }}\n" for name, a in elements]
    with steady.ruled(gap=1.0):
        steady.host.run(["nft", "-f", "-"], input="".join(lines))
        steady.in_force()
    assert "elements of set out4_model" in steady.findings()["foreign-change"]


RELOADS = {
    "nftables": ("start", "restart", "reload"),
    "firewalld": ("start", "restart", "reload"),
    "ufw": ("start", "restart"),
}


@pytest.mark.parametrize("service", RELOADS)
def test_flushed_and_the_agent_is_dead(steady: Steady, service: str) -> None:
    """Open until the floor is loaded: a service that loads its own rules brings it, and so does the agent."""
    host = steady.host
    host.sh("systemctl stop penstock.service")
    try:
        for verb in RELOADS[service]:
            host.sh("nft delete table inet penstock")
            steady.is_open()
            seconds, _ = steady.open_for(partial(host.sh, f"systemctl {verb} {service}.service"))
            print(f"after systemctl {verb} {service}: open for {seconds * 1000:.0f} ms")
            assert seconds < 5
            steady.is_ruled()
        host.sh("nft flush ruleset")
        steady.is_open()
        host.sh("systemctl start penstock.service")
        steady.in_force()
        steady.is_ruled()
    finally:
        host.sh(f"systemctl stop {service}.service; systemctl start penstock.service")
        steady.in_force()


def test_nftables_reloaded_and_the_agent_is_there(steady: Steady) -> None:
    host = steady.host
    host.sh("systemctl start nftables.service")
    for verb in ("restart", "reload", "stop"):
        seconds, packets = steady.open_for(partial(host.sh, f"systemctl {verb} nftables.service"))
        print(f"systemctl {verb} nftables.service: open for {seconds * 1000:.0f} ms, {packets} packets left")
        assert seconds < slow(1)
        steady.in_force()
        steady.is_ruled()


# --- nothing can be written ---


def test_disk_full(steady: Steady) -> None:
    host, good = steady.host, steady.status()["policy"]["hash"]
    with small_disk(steady), steady.ruled():
        host.sh("cat /dev/zero >/small/filler || true")
        refused = steady.apply(rules(OPEN), check=False)
        print(refused.stderr.strip())
        assert refused.returncode == 1
        assert "make room" in refused.stderr
        assert "Traceback" not in refused.stderr
        host.wait_until(lambda: "log-unwritable" in steady.findings(), 30)
        assert steady.in_force()["policy"]["hash"] == good
        steady.another_daemon(steady.kill("KILL"))  # it starts on a full disk as well
        assert "log-unwritable" in steady.findings()
        host.sh("rm /small/filler")
        steady.apply(rules(comment="there is space"))
        host.wait_until(lambda: not {"log-unwritable", "state-unwritable"} & set(steady.findings()), 90)
    steady.apply(rules())


@contextmanager
def small_disk(steady: Steady) -> Iterator[None]:
    """State and log are on a file system of 2 MiB, /small; the daemon starts anew there."""
    host = steady.host
    host.sh("systemctl stop penstock.service; mkdir /small; mount -t tmpfs -o size=2M tmpfs /small")
    host.sh(f"cp -a {STATE} /small/state; mkdir /small/log")
    host.sh(f"mount --bind /small/state {STATE}; mount --bind /small/log {LOG}; systemctl start penstock.service")
    steady.in_force()
    try:
        yield
    finally:
        host.sh(f"systemctl stop penstock.service; umount {STATE} {LOG} /small; rmdir /small; "
                "systemctl start penstock.service")
        steady.in_force()


def test_etc_is_read_only(steady: Steady) -> None:
    host = steady.host
    host.write("/etc/systemd/system/other.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    host.sh("systemctl daemon-reload; systemctl start other.service")
    listing = "find /etc | sort; nft -s list table inet penstock | grep -v counter"
    before = host.sh(listing)
    host.sh("mount --bind /etc /etc; mount -o remount,bind,ro /etc")
    try:
        with steady.ruled():
            refused = host.run(["penstock", "protect", "other.service"], check=False)
            print(refused.stderr.strip())
            assert refused.returncode == 1
            assert "ead-only" in refused.stderr
            assert "Traceback" not in refused.stderr
            assert host.sh(listing) == before
    finally:
        host.sh("umount /etc; systemctl stop other.service; rm /etc/systemd/system/other.service; "
                "systemctl daemon-reload")


# --- a policy on trial ---


def on_trial(steady: Steady, seconds: int) -> None:
    """Apply what opens a door, so long."""
    steady.apply(rules(OPEN), "--confirm", f"{seconds}s")
    steady.is_open(inward=False)
    assert steady.status()["policy"]["confirm_until"]


def reverted(steady: Steady, good: str, within: float) -> None:
    """The door must close by itself, and what was there before is in force."""
    steady.host.wait_until(lambda: steady.status()["policy"]["hash"] == good, within)
    assert steady.status()["policy"]["confirm_until"] is None
    steady.in_force()
    steady.is_ruled()
    steady.apply(rules())


def test_not_confirmed(steady: Steady) -> None:
    good = steady.status()["policy"]["hash"]
    start = time.monotonic()
    seconds, _ = steady.open_for(lambda: on_trial(steady, 5))
    print(f"--confirm 5s: open for {seconds:.1f} s")
    assert seconds < 5 + 4
    reverted(steady, good, 2)
    assert time.monotonic() - start > 5
    steady.says("nobody confirmed the policy", level="warning")


def test_not_confirmed_and_killed(steady: Steady) -> None:
    good = steady.status()["policy"]["hash"]
    on_trial(steady, 600)
    print(f"reverted {steady.another_daemon(steady.kill('KILL')):.1f} s after SIGKILL")
    reverted(steady, good, 2)


def test_not_confirmed_and_stopped(steady: Steady) -> None:
    good = steady.status()["policy"]["hash"]
    on_trial(steady, 600)
    start = time.monotonic()
    steady.host.sh("systemctl stop penstock.service")
    print(f"stopped, and reverted, in {time.monotonic() - start:.1f} s")
    steady.is_ruled()
    steady.host.sh("systemctl start penstock.service")
    steady.in_force()
    reverted(steady, good, 2)


def test_not_confirmed_and_crashed(steady: Steady) -> None:
    """The host loses its power: what is not confirmed was never on its disk."""
    host, good = steady.host, steady.status()["policy"]["hash"]
    on_trial(steady, 600)
    host.crash()
    start, mark = time.monotonic(), steady.world.outside.mark()
    host.power_on()
    steady.in_force()
    steady.wait_beats()
    seen = steady.seen(mark, start)
    assert seen.leaked == seen.intruded == 0, seen
    reverted(steady, good, 2)


# --- time ---


def timed(seconds: float) -> tuple[str, float]:
    """Rules that open the door for about so long, and until when in `time.time()`."""
    end = datetime.fromtimestamp(int(time.time() + seconds), UTC)
    return rules(OPEN.replace("}\n", f', expires: "{end:%Y-%m-%dT%H:%M:%SZ}"}}\n')), end.timestamp()


def oversleep(steady: Steady) -> None:
    """Leave the kernel's rules as they are after a long sleep: they have still long to live."""
    lines = []
    for name, address in zip(("out4_model", "out6_model"), STRANGER, strict=True):
        for what in (f"udp . {PORT}", "tcp . 443"):
            element = f"element inet penstock {name} {{ {address} . {what}"
            lines += [f"delete {element} }}\n", f"add {element} timeout 1h }}\n"]
    steady.host.run(["nft", "-f", "-"], input="".join(lines))


def sleep_until(steady: Steady, end: float) -> None:
    """Wait for that moment of the wall clock."""
    steady.host.wait_until(lambda: time.time() > end)


HOOK = ["/usr/lib/systemd/system-sleep/penstock", "post", "suspend"]


def test_woken(steady: Steady) -> None:
    """A rule whose end came while the host slept, agent and all."""
    text, end = timed(5)
    steady.apply(text)
    steady.is_open(inward=False)
    pid = steady.kill("STOP")
    try:
        oversleep(steady)
        sleep_until(steady, end)
        steady.is_open(inward=False)
    finally:
        steady.host.run(["kill", "-CONT", str(pid)])
    seconds, packets = steady.open_for(lambda: steady.host.run(HOOK))
    print(f"woken: open for {seconds * 1000:.0f} ms, {packets} packets left")
    assert seconds < slow(1)
    assert steady.daemon() == pid
    steady.is_ruled()
    steady.apply(rules())


def test_woken_looks_at_once(steady: Steady) -> None:
    """The hook has the agent look: what is over goes from the policy in force before the next look of its own."""
    for _ in range(3):  # on a busy machine it may have come by itself
        text, end = timed(4)
        steady.apply(text)
        sleep_until(steady, end - 0.3)
        looked = time.time()
        steady.host.run(HOOK)  # the next look of its own is two seconds away now
        sleep_until(steady, end + 0.1)
        steady.host.run(HOOK)
        said = steady.says("rules that are over were removed", since=end - 1)
        steady.is_ruled()
        steady.apply(rules())
        print(f"said {said - end:.2f} s after the end, {said - looked:.2f} s after the look before")
        if end < said < looked + 2:
            return
    pytest.fail("it waits for its next look")


def test_woken_and_the_agent_is_dead(steady: Steady) -> None:
    """The floor takes the place of what may be over: it holds nothing that ends."""
    host = steady.host
    text, end = timed(5)
    steady.apply(text)
    host.sh("systemctl stop penstock.service")
    try:
        oversleep(steady)
        sleep_until(steady, end)
        steady.is_open(inward=False)
        seconds, packets = steady.open_for(lambda: host.run(HOOK))
        print(f"woken without an agent: open for {seconds * 1000:.0f} ms, {packets} packets left")
        assert seconds < slow(1)
        steady.is_ruled()
    finally:
        host.sh("systemctl start penstock.service")
    steady.in_force()
    steady.is_ruled()
    steady.apply(rules())


# --- the last one ---


def test_uninstalled(steady: Steady) -> None:
    """What `penstock uninstall` prints is so."""
    host, pid = steady.host, steady.shown(UNIT, "MainPID")

    def cgroup() -> str:
        return host.read(f"/proc/{steady.shown(UNIT, 'MainPID')}/cgroup").strip()

    steady.is_ruled()
    planned = host.run(["penstock", "uninstall", "--plan"]).stdout
    steady.is_ruled()
    said = host.run(["penstock", "uninstall", "--yes"]).stdout
    print(said)
    truth = "without the table every process reaches everything, and is reached by everybody"
    stays = f"{UNIT} (workload model, 1 process) stays in its slice until its restart"
    for line in (truth, stays):
        assert line in planned
        assert line in said
    steady.is_open()
    assert steady.shown(UNIT, "MainPID") == pid
    assert SLICE in cgroup()
    assert not host.exists("/usr/bin/penstock")
    host.sh(f"systemctl restart {UNIT}")
    host.wait_until(lambda: not host.exists("/sys/fs/cgroup/penstock.slice"))
    assert SLICE not in cgroup()
    steady.is_open()
    host.reboot()
    assert steady.shown(UNIT, "ActiveState") == "active"
    steady.is_open()
