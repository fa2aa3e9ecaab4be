"""What a booted host tells whoever watches it: the journal's fields, and metrics that others may read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exposition import parse, value
from hosts.installed import TCP, Installed, boot
from hosts.outside import STRANGER
from hosts.world import World
from penstock.core.journal import MESSAGE_IDS
from penstock.core.slices import slice_of

NAME = "watched"
RULES = f"version: 1\nworkload: {NAME}\nmode: enforce\negress: []\ningress: []\n"
METRICS = "/run/penstock-metrics/penstock.prom"


@pytest.fixture(scope="module")
def watched(world: World, older_release: str) -> Installed:
    made = boot(world, f"w-{older_release}", older_release)
    made.host.write(f"/etc/penstock/rules.d/{NAME}.yaml", RULES)
    made.host.run(["penstock", "apply"])
    made.wait_for(lambda: made.enforcing(NAME), 30)
    return made


def records(watched: Installed, *matches: str) -> list[dict[str, Any]]:
    """What the journal has of it."""
    said = watched.host.run(["journalctl", "-q", "-b", "-o", "json", *matches], check=False).stdout
    return [json.loads(line) for line in said.splitlines()]


def test_a_block_is_found_by_its_workload(watched: Installed) -> None:
    for address in STRANGER:
        assert watched.host.tcp(address, TCP, 1, slice_of(NAME)).outcome != "ok"
        there = f"[{address}]:{TCP}" if ":" in address else f"{address}:{TCP}"
        matches = (f"PENSTOCK_WORKLOAD={NAME}", f"PENSTOCK_DESTINATION={there}")
        found = watched.wait_for(lambda m=matches: records(watched, *m))  # type: ignore[misc]
        assert found[0]["MESSAGE_ID"] == MESSAGE_IDS["denied"]
        assert found[0]["_SYSTEMD_UNIT"] == "penstock.service"
        assert found[0]["PRIORITY"] == "5"
        shown = json.loads(watched.sh(f"penstock why --block {found[0]['PENSTOCK_BLOCK']} --json || true"))
        assert shown["block"]["address"] == address


def test_priorities_and_kinds(watched: Installed) -> None:
    applied = records(watched, "PENSTOCK_EVENT=applied")
    assert {record["PRIORITY"] for record in applied} == {"6"}
    watched.sh("nft flush table inet penstock")
    found = watched.wait_for(lambda: records(watched, "-p", "err", "-u", "penstock.service"))
    assert {record["PENSTOCK_EVENT"] for record in found} == {"foreign-change"}
    watched.wait_for(lambda: records(watched, f"MESSAGE_ID={MESSAGE_IDS['repaired']}"))
    watched.wait_for(lambda: watched.enforcing(NAME), 30)
    assert not records(watched, "-t", "penstock", "_TRANSPORT=stdout"), "nothing comes twice"


def test_somebody_else_reads_the_metrics(watched: Installed) -> None:
    read = f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {METRICS}"

    def told() -> bytes | None:
        text = watched.host.run(["sh", "-c", read], check=False).stdout
        return text.encode() if f'workload="{NAME}"' in text else None

    text = watched.wait_for(told, 20)
    assert text
    assert value(parse(text), "penstock_workload_in_force", workload=NAME) == 1
    watched.sh("systemctl restart penstock.service")
    assert watched.wait_for(told, 20)
    watched.sh("systemctl stop penstock.service")
    assert watched.sh(f"ls {METRICS} 2>/dev/null || true") == ""
    watched.sh("systemctl start penstock.service")


def test_uninstalling_takes_them_away(watched: Installed) -> None:
    watched.wait_for(lambda: watched.sh(f"ls {METRICS} 2>/dev/null || true"), 20)
    watched.sh("penstock uninstall --yes")
    assert watched.sh("ls -d /run/penstock* 2>/dev/null || true") == ""
