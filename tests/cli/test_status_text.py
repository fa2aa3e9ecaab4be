"""The screen of `penstock status`."""

from __future__ import annotations

from typing import Any

import pytest

from cli.fake_daemon import finding, lent, policy, status, unit, workload
from penstock.cli import format as form
from penstock.cli.status_text import screen
from penstock.core.wire import Json


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_whole_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.status_text.local", lambda _: "2026-11-25 03:12:01")
    said = status(
        workload(),
        workload("ollama", mode="observe", egress="observing", ingress="observing", processes=0, enrolment="none"),
        policy=policy(pending_files=1),
        findings=[
            finding("root", workload="litellm", text="runs as root", remedy="penstock run litellm --user NAME"),
            finding("kernel-disagrees", "error", text="the kernel does not hold the policy", remedy=""),
        ],
    )
    assert "\n".join(screen(said, None)) == """\
daemon    running for 3 min, version 0.1.0, pid 7
policy    abcdef012345, applied 2026-11-25 03:12:01 (3 min ago)
          1 file differs from what is applied: penstock plan
kernel    nft agrees, checked 2 s ago

WORKLOAD  MODE     STATE      ENROLMENT  PROCS  DENIED  BLOCKS/1H
litellm   enforce  enforcing  run            3  12,345          2
ollama    observe  observing  none           0  12,345          2
only observed: ollama; the rules it needs: penstock suggest ollama

Always allowed
  - a workload may talk to itself

Findings
  error   the kernel does not hold the policy [kernel-disagrees]
  info    litellm: runs as root [root]
          -> penstock run litellm --user NAME"""


def test_it_fits_into_80_columns() -> None:
    long = "a" * 48
    said = status(
        workload(long, outside=1),
        workload(denied=1_234_567_890),
        findings=[finding(f"code-{n % 3}", "warning", text="word " * 60) for n in range(40)],
    )
    lines = screen(said, None)
    assert max(map(len, lines)) <= 80
    assert long in lines  # whole, on a line of its own
    more = ["  and 11 more [code-0], 10 more [code-1], 10 more [code-2]:", "    penstock status --all"]
    assert lines[-2:] == more


def test_what_is_unknown_and_what_is_hostile() -> None:
    said = status(
        workload(denied=None, blocks_1h=None),
        kernel={"backend": "nft", "agrees": None, "checked": None},
        policy={"hash": None, "applied": None, "pending_files": None},
        findings=[finding(text="a\x1b[2Jb")],
    )
    text = "\n".join(screen(said, []))
    assert "policy    none is applied: penstock apply" in text
    assert "kernel    nft not known, checked unknown" in text
    assert "\x1b" not in text
    assert "no rules: it may talk to nobody, and nobody to it" in text


def test_a_disagreement_strikes_the_eye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "colours", lambda: True)
    said = status(workload(egress="degraded"), kernel={"backend": "nft", "agrees": False, "checked": None})
    text = "\n".join(screen(said, None))
    assert "\x1b[31mDISAGREES\x1b[0m" in text
    assert "\x1b[31mdegraded\x1b[0m" in text


def test_the_units_of_one_workload() -> None:
    slice_path = "penstock.slice/penstock-a\\x2db.slice/b.service"
    here = workload(units=[unit("a.service\x1b"), unit("b.service", "slice", cgroup=slice_path, processes=1200)])
    lines = screen(status(here), [])
    at = lines.index("Units")
    assert lines[at : at + 7] == [
        "Units",
        "  a.service\\x1b: in-place, 1 process",
        "      /system.slice/a.service\\x1b",
        "  b.service: slice, 1,200 processes",
        f"      /{slice_path}",
        "    in-place: governed where it is; it comes into its slice at a restart after",
        "    `penstock protect`",
    ]
    assert "no unit of it runs" in screen(status(), [])
    assert "Units" not in screen(status(here), None)
    assert not any("in-place:" in line for line in screen(status(workload(units=[unit(how="slice")])), []))


def test_a_policy_that_is_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.status_text.clock", lambda _: "03:16:00")
    monkeypatch.setattr("penstock.cli.format.colours", lambda: True)
    said = status(policy=policy(confirm_until="2026-11-25T02:16:00Z"))
    text = "not confirmed: reverts at 03:16:00 unless `penstock confirm`"
    assert screen(said, None)[2] == f"          \x1b[31m{text}\x1b[0m"
    assert not any("not confirmed" in line for line in screen(status(), None))


def listener(port: int = 8000, *reached_by: str, rules: tuple[str, ...] = ("r",), **more: object) -> Json:
    one = {"protocol": "tcp", "address": "0.0.0.0", "port": port, "process": "vllm"}
    return {**one, "reached_by": list(reached_by), "rules": list(rules), **more}


def listening(*workloads: dict[str, Any], whole: bool = False) -> list[str]:
    lines = screen(status(*workloads), [] if whole else None)
    return lines[lines.index("Listening") + 1 : lines.index("Always allowed") - 1]


def test_who_reaches_each_open_port() -> None:
    found = [
        listener(8000, "clients (inference)", "workload:gateway"),
        listener(8001, address="::1", process=None),
        listener(9090, rules=()),
        listener(53, "everyone (observe)", rules=(), protocol="udp", address="127.0.0.1%lo"),
    ]
    assert listening(workload(listening=found)) == [
        "  litellm 0.0.0.0:8000 (vllm) <- clients (inference), workload:gateway",
        "  litellm [::1]:8001 <- nobody outside the workload",
        "  litellm 0.0.0.0:9090 (vllm) <- no rule: nobody outside the workload",
        "  litellm 127.0.0.1%lo:53/udp (vllm) <- everyone (observe), no rule",
    ]
    (locked,) = listening(workload(mode="lock", listening=[listener(8000)]))
    assert locked.endswith("<- nobody: locked")


def test_a_port_without_a_rule_strikes_the_eye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.status_text.paint", lambda text, colour=None: f"<{colour}>{text}")
    with_rule, without = listening(workload(listening=[listener(1, "clients"), listener(2, rules=())]))
    assert (with_rule[0], without[:8]) == (" ", "<yellow>")


def test_open_ports_that_are_alike_stand_together() -> None:
    some = [listener(n, rules=()) for n in range(8000, 8010)]
    line = listening(workload("r", listening=some))[0]
    assert line == "  r 0.0.0.0:8000, 8001, 8002, 8003, 8004, 8005, 4 more (vllm) <- no rule:"
    assert "8009" in " ".join(listening(workload("r", listening=some), whole=True))


def test_many_open_ports_are_folded_unless_one_workload_is_asked_for() -> None:
    long = [listener(8000 + n, *(f"network-{n}-{m}" for m in range(7))) for n in range(12)]
    lines = listening(workload("ray", listening=long))
    assert max(map(len, lines)) <= 80
    assert (len(lines), lines[-1]) == (21, "  and more: penstock status ray")
    both = listening(workload("a", listening=long), workload("b", listening=long))
    assert both[-1] == "  and more: penstock status WORKLOAD"
    assert len(listening(workload("ray", listening=long), whole=True)) == 24


@pytest.mark.parametrize("known", [None, []])
def test_where_nothing_listens_or_it_is_not_known_nothing_is_said(known: list[Json] | None) -> None:
    assert "Listening" not in screen(status(workload(listening=known)), None)


def test_what_is_lent() -> None:
    grants = [lent(reason="why\x1b"), lent(workload="ollama", preset="hub", what="preset hub")]
    found = screen(status(grants=grants), None)
    at = found.index("Grants")
    assert found[at + 1 : at + 4] == [
        "  - grant-1a2b3c4d  litellm, 10.30.1.9:5432: 30 min left, anna: why\\x1b",
        "  - grant-1a2b3c4d  ollama, preset hub: 30 min left, anna: to see",
        "",
    ]


def test_a_rule_that_is_lent_is_in_no_file() -> None:
    rule = {"id": "grant-1a2b3c4d", "direction": "out", "text": "10.30.1.9:5432", "hits": 3}
    rule |= {"file": None, "line": None, "names": None}
    assert "                grant-1a2b3c4d  lent, see below" in screen(status(), [rule])


# --- many ---


def table_of(lines: list[str]) -> list[str]:
    """The names in the table of workloads."""
    first = next(n for n, line in enumerate(lines) if line.startswith("WORKLOAD")) + 1
    return [line.split()[0] for line in lines[first : lines.index("", first)] if line.startswith("w")]


def quiet(number: int, **more: Any) -> dict[str, Any]:
    return workload(f"w{number:03}", **({"blocks_1h": 0} | more))


def test_directions_that_differ_have_a_column_each() -> None:
    lines = screen(status(workload(), workload("b", ingress="degraded")), None)
    assert "EGRESS     INGRESS" in lines[4]
    assert "enforcing  degraded" in lines[6]


def test_of_many_workloads_those_that_want_attention_are_shown() -> None:
    special: dict[int, dict[str, Any]] = {
        7: {"egress": "degraded"},
        50: {"ingress": "unenforced"},
        90: {"outside": 1},
        99: {"mode": "observe", "egress": "observing", "ingress": "observing"},
        110: {"blocks_1h": 3},
        120: {"blocks_1h": 1_000},
    }
    lines = screen(status(*(quiet(n, **special.get(n, {})) for n in range(125))), None)
    shown = table_of(lines)
    assert shown == ["w007", "w050", "w090", "w099", "w120", "w110"], "the worst first"
    text = " ".join(lines)
    assert "and 119 more, all of them enforce, and denied nothing in the last hour:" in text
    assert any(line.endswith("penstock status --all") for line in lines)
    assert max(map(len, lines)) <= 80
    everything = screen(status(*(quiet(n) for n in range(125))), None, everything=True)
    assert len(table_of(everything)) == 125
    assert table_of(screen(status(*(quiet(n) for n in range(125))), None)) == [f"w{n:03}" for n in range(5)]


def test_what_is_worst_is_shown_first() -> None:
    said = [quiet(n, blocks_1h=n) for n in range(30)] + [quiet(n, egress="degraded") for n in range(30, 35)]
    lines = screen(status(*said), None)
    assert set(table_of(lines)) == {f"w{n:03}" for n in [*range(15, 30), *range(30, 35)]}
    assert "and 15 more, 1 of them quiet: penstock status --all" in lines


def test_many_grants_and_findings() -> None:
    findings = [finding("root", workload=f"w{n}", text="runs as root") for n in range(9)]
    said = status(workload(), grants=[lent(id=f"grant-{n:08x}") for n in range(30)], findings=findings)
    lines = screen(said, None)
    assert sum("grant-" in line for line in lines) == 10
    assert "  and 20 more: penstock grants" in lines
    assert sum("[root]" in line for line in lines) == 4
    everything = screen(said, None, everything=True)
    assert sum("grant-" in line for line in everything) == 30
    assert sum("[root]" in line for line in everything) == 9


def test_a_command_to_be_copied_is_not_broken() -> None:
    for length in range(1, 49):
        name = "m" * length
        lines = screen(status(workload(name, mode="observe", egress="observing", ingress="observing")), None)
        assert any(line.endswith(f"penstock suggest {name}") for line in lines), length
        assert max(map(len, lines)) <= 80


def test_live_shows_what_changes() -> None:
    one = workload(listening=[listener(8000, "clients")])
    assert {"Listening", "Always allowed"} <= set(screen(status(one), None))
    assert not {"Listening", "Always allowed"} & set(screen(status(one), None, live=True))
    assert "Listening" in screen(status(one), [], live=True), "of one workload it may be what is looked for"


def test_a_workload_that_was_let_out_of_its_rules_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.cli.format.colours", lambda: True)
    let_out = workload("a", mode="observe", egress="observing", ingress="observing", until="2026-11-25T02:45:09Z")
    grants = [lent(workload="a", what="mode observe", mode="observe"), lent(workload="a", mode=None)]
    lines = screen(status(let_out, grants=grants), None)
    [row] = [line for line in lines if line.startswith("a ")]
    assert "\x1b[31mobserve to " in row
    red = [line for line in lines if line.startswith("\x1b[31m  - grant-")]
    assert len(red) == 1
    assert "mode observe: 30 min left" in red[0]
