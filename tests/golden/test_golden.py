"""The nft text of every shipped example, and the shipped floor, for people who read firewalls; and that a kernel
takes it.

PENSTOCK_REFRESH_GOLDEN=1 writes the files anew: `PENSTOCK_REFRESH_GOLDEN=1 tests/run tests/golden`, then read what
has changed.
An example is its own rule file with the shipped penstock.yaml, the presets it uses, and empty stand-ins for the
workloads it names; or a directory, whole.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from governed import placed
from penstock.core import floor, label_bits
from penstock.core.compile import Live, Resolver, compile_policy
from penstock.core.parse import parse
from penstock.core.policy import Policy, Upstream
from penstock.core.render_nft import Present, headed, script
from penstock.core.ruleset import Ruleset
from penstock.demo.lab import Lab
from penstock.files import read_config
from penstock.kernel import cgroup
from penstock.kernel.nft import Nft

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "rules"
FLOOR = HERE.parents[1] / "systemd/floor-deny.nft"
EXAMPLES = sorted(path.stem for path in (RULES / "examples").glob("*") if path.stem != "penstock")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
DEPTH = 1  # of penstock.slice on a host
IN_PLACE, LEVELS = "vllm", (2, 3)
PORT = 40053  # where the resolver listens for the workload
STAND_IN = "version: 1\nworkload: {}\nmode: enforce\negress: []\ningress: []\n"


def policy(name: str) -> Policy:
    """The example `name`, as `penstock check` reads it."""
    directory = RULES / "examples" / name
    files = read_config(directory) if directory.is_dir() else _of_one_file(name)
    presets = {found.name: found.read_bytes() for found in (RULES / "presets").glob("*.yaml")}
    parsed = parse(files, presets)
    assert parsed.policy, parsed.problems
    return parsed.policy


def _of_one_file(name: str) -> dict[str, bytes]:
    path = f"rules.d/{name}.yaml"
    files = {
        "penstock.yaml": (RULES / "examples/penstock.yaml").read_bytes(),
        path: (RULES / f"examples/{name}.yaml").read_bytes(),
    }
    for other in set(re.findall(r"workload:([a-z0-9-]+)", files[path].decode())) - {name}:
        files[f"rules.d/{other}.yaml"] = STAND_IN.format(other).encode()
    return files


def ruleset(name: str, levels: tuple[int, ...] = ()) -> Ruleset:
    """Of the example, with the stand-ins for the workloads that it names."""
    whole = policy(name)
    own = [name] if name in whole.workloads else sorted(whole.workloads)
    others = sorted(whole.workloads.keys() - set(own))
    labels = {each: label_bits.FIRST_LABEL + n for n, each in enumerate((*own, *others))}
    upstreams = Upstream(ip_address("192.0.2.53")), Upstream(ip_address("2001:db8::53"))
    resolver = Resolver({each: PORT + n for n, each in enumerate(own)}, upstreams)
    return compile_policy(whole, Live(NOW, labels, DEPTH, levels, resolver))


def readable(name: str) -> str:
    """The script that would be loaded on a fresh host, with headings, an element a line."""
    title = f"# The example `{name}`, as it is loaded on a fresh host.\n"
    return title + headed(script(ruleset(name), Present(), NOW))


def readable_in_place() -> str:
    """The same of an example whose units still run where they were started: system.slice, and a slice in it."""
    title = f"# The example `{IN_PLACE}`, as it is loaded on a fresh host with units in place at levels 2 and 3.\n"
    return title + headed(script(ruleset(IN_PLACE, LEVELS), Present(), NOW))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_text_of_an_example(name: str) -> None:
    path = HERE / f"{name}.nft"
    if os.environ.get("PENSTOCK_REFRESH_GOLDEN"):
        path.write_text(readable(name))
    assert path.read_text() == readable(name)


def test_the_text_of_an_example_in_place() -> None:
    path = HERE / "in-place" / f"{IN_PLACE}.nft"
    if os.environ.get("PENSTOCK_REFRESH_GOLDEN"):
        path.write_text(readable_in_place())
    assert path.read_text() == readable_in_place()


def test_there_is_no_text_of_an_example_that_is_gone() -> None:
    assert sorted(path.stem for path in HERE.glob("*.nft")) == EXAMPLES


def test_the_floor_that_is_shipped() -> None:
    """It is loaded when there is no good floor: every workload is denied everything."""
    nothing = compile_policy(Policy(), Live(NOW, {}, DEPTH))
    wanted = floor.text(nothing, (), floor.NO_POLICY)
    if os.environ.get("PENSTOCK_REFRESH_GOLDEN"):
        FLOOR.write_bytes(wanted)
    assert FLOOR.read_bytes() == wanted


def read_back(wanted: Ruleset, text: str, tree: Path) -> None:
    nft = Nft()
    cgroup.make(tree, ())
    wanted = placed(wanted, tree)
    try:
        nft.load(text.replace('"penstock.slice"', f'"{tree.name}/penstock.slice"'))
        found = nft.snapshot()
        assert found.present == Present.of(wanted, NOW)
        assert found.chains == {chain.name: len(chain.rules) for chain in wanted.chains}
        nft.load(script(wanted, found.present, NOW))
        again = nft.snapshot()
        assert (again.digest, again.present) == (found.digest, found.present)
    finally:
        nft.load("add table inet penstock\ndelete table inet penstock\n")


@pytest.mark.root
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_kernel_takes_it_and_gives_it_back(lab: Lab, name: str) -> None:
    lab.host.call(read_back, ruleset(name), (HERE / f"{name}.nft").read_text(), lab.cgroup)


@pytest.mark.root
def test_a_kernel_takes_it_in_place(lab: Lab) -> None:
    text = (HERE / "in-place" / f"{IN_PLACE}.nft").read_text()
    lab.host.call(read_back, ruleset(IN_PLACE, LEVELS), text, lab.cgroup)
