"""Findings: what each is made from, how grave it is, and that nothing hostile reaches a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest
from fake_host import START, Host, rules

from penstock.core import exposure, findings
from penstock.core.events import Bypass, Group, Listener, LookAlike, Seen, Stray
from penstock.core.match import Unit
from penstock.core.policy import NOWHERE
from penstock.core.view import InForce, View
from penstock.core.wire import Json

FILES = {
    "rules.d/a.yaml": rules("a") + b"match: {unit: 'a*.service'}\n",
    "rules.d/b.yaml": rules("b") + b"match: {unit: '*b.service'}\n",
}
EVIL = "x\x1b[2J\ny"
PLACE = "system.slice/a.service"
PLAIN = "what `penstock run` or `adopt` brought in sees it as before"


def known() -> tuple[View, InForce]:
    """A host with one unit, bound where it is."""
    host = Host(FILES)
    host.unit(PLACE)
    host.start()
    assert host.engine.in_force
    return host.engine.view, host.engine.in_force


def found(change: Callable[[View], object]) -> list[Json]:
    """What a change of what is known brings."""
    view, in_force = known()
    assert list(findings.all_of(view, in_force, START)) == []
    change(view)
    return list(findings.all_of(view, in_force, START))


def group(**more: str) -> Group:
    return replace(Group("a.service", PLACE, "in-place", 1), **more)  # type: ignore[arg-type]


def has(name: str, value: object) -> Callable[[View], None]:
    return lambda view: setattr(view, name, value)


def trouble(effect: str) -> Callable[[View], None]:
    return lambda view: view.troubles.update({effect: "no room"})


CASES: list[tuple[Callable[[View], object], str, str, str | None]] = [
    (has("agrees", False), "kernel-disagrees", "error", None),
    (has("agrees", None), "kernel-unknown", "error", None),
    (has("proven", False), "not-proven", "error", None),
    (lambda view: view.alarms.append((START, EVIL)), "foreign-change", "warning", None),
    (has("strays", (Stray(9, 1, EVIL, "a", EVIL),)), "outside", "error", "a"),
    (has("processes", {"a": (Seen(9, 1, EVIL, 0),)}), "root", "info", "a"),
    (has("processes", {"a": (Seen(9, 1, EVIL, 7, elsewhere=True),)}), "other-network", "warning", "a"),
    (has("processes", {"a": (Seen(9, 1, "conmon", 7),)}), "container-outside", "warning", "a"),
    (has("bypasses", (Bypass("a", EVIL, 9, EVIL),)), "name-bypass", "warning", "a"),
    (has("look_alikes", (LookAlike(9, EVIL, "vllm", EVIL),)), "look-alike", "warning", None),
    (has("units", (Unit("ab.service", PLACE, 102),)), "ambiguous", "error", "a"),
    (has("units", (Unit("a.service", "x.slice/a.service", 9),)), "unbound-unit", "error", "a"),
    (has("units", (Unit(f"a{EVIL}.service", "x.slice/a.service", 9),)), "unbound-unit", "error", "a"),
    (has("groups", {"a": (group(),)}), "in-place", "warning", "a"),
    (has("groups", {"a": (group(unit=EVIL, cgroup=EVIL),)}), "in-place", "warning", "a"),
    (has("groups", {"a": (group(dropin="ignored"),)}), "slice-ignored", "error", "a"),
    (has("delegated", (("a", EVIL, 1000),)), "delegated", "warning", "a"),
    (has("config_errors", 2), "files-broken", "warning", None),
    (has("floor", f"deny-all {EVIL}"), "floor-fallback", "warning", None),
    (has("floor", "failed no nft"), "floor-fallback", "warning", None),
    (has("lost", 3), "log-loss", "warning", None),
    (trouble("Record"), "log-unwritable", "warning", None),
    (trouble("CommitState"), "state-unwritable", "warning", None),
    (trouble("SaveBooks"), "state-unwritable", "warning", None),
    (trouble("KeepFloor"), "floor-unwritable", "warning", None),
    (trouble("ReadState"), "state-damaged", "warning", None),
    (trouble("Enrol"), "trouble", "warning", None),
    (trouble("SliceWatch"), "trouble", "warning", None),
]


@pytest.mark.parametrize(("change", "code", "severity", "workload"), CASES, ids=[case[1] for case in CASES])
def test_each_has_its_code_and_says_what_helps(
    change: Callable[[View], object], code: str, severity: str, workload: str | None
) -> None:
    codes = {one["code"]: one for one in found(change)}
    one = codes[code]
    assert (one["severity"], one["workload"]) == (severity, workload)
    assert one["remedy"]
    for text in (one["text"], one["remedy"]):
        assert "\x1b" not in text
        assert "\n" not in text


def test_a_container_in_the_slice_is_where_it_should_be() -> None:
    """Beside the program that had it made; somewhere in the workload."""

    def change(view: View) -> None:
        view.processes = {"a": (Seen(9, 1, "podman", 7), Seen(10, 1, "conmon", 7), Seen(11, 1, "nginx", 7))}
        view.groups = {"a": (group(how="slice"), replace(group(how="slice"), containers=1))}

    assert found(change) == []


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("/system.slice/c.service", "penstock protect c.service"),
        ("/user.slice/user-1.slice/user@1.service/app.slice/a.service", "penstock adopt 9"),
        ("/user.slice/user-1.slice/session-1.scope", "penstock adopt 9"),
        ("/", "penstock adopt 9"),
        (f"/{PLACE}", None),  # seen before the policy that claims it
    ],
)
def test_what_helps_against_a_look_alike_can_be_copied(place: str, remedy: str | None) -> None:
    told = found(has("look_alikes", (LookAlike(9, "vllm", "vllm", place),)))
    assert [one["remedy"] for one in told] == ([remedy] if remedy else [])


@pytest.mark.parametrize(
    ("groups", "remedy"),
    [
        ((), "penstock protect UNIT hides it, from the unit's next start on"),
        ((group(how="slice"),), "penstock protect a.service hides it, from the unit's next start on"),
        ((group(), group(unit="b.service")), "penstock protect UNIT hides it, from the unit's next start on"),
        ((group(how="run"),), f"{PLAIN}: make a unit of it, then protect that"),
        ((group(how="adopted"),), f"{PLAIN}: make a unit of it, then protect that"),
        (
            (group(how="slice"), group(how="run")),
            f"penstock protect a.service hides it, from the unit's next start on; {PLAIN}: make a unit of it, "
            "then protect that",
        ),
    ],
)
def test_only_from_a_unit_can_it_be_hidden_who_looks_names_up(groups: tuple[Group, ...], remedy: str) -> None:
    def change(view: View) -> None:
        view.bypasses = (Bypass("a", "/run/nscd/socket", 9, "x"),)
        view.groups = {"a": groups}

    assert [one["remedy"] for one in found(change) if one["code"] == "name-bypass"] == [remedy]


@pytest.mark.parametrize("floor", ["", "loaded 0123456789ab", "nonsense"])
def test_a_floor_that_loaded_is_no_finding(floor: str) -> None:
    assert found(has("floor", floor)) == []


def test_what_is_bound_elsewhere_under_its_name_is_another_unit() -> None:
    view, in_force = known()
    assert in_force.cgroups[PLACE]
    view.units = (Unit("a.service", PLACE, in_force.cgroups[PLACE] + 1),)
    assert [one["code"] for one in findings.all_of(view, in_force, START)] == ["unbound-unit"]


@pytest.mark.parametrize(
    ("dropin", "helps"),
    [
        ("none", "penstock protect a.service"),
        ("pending", "penstock apply gives it its slice; then: systemctl restart a.service"),
        ("armed", "its slice is ready: systemctl restart a.service"),
    ],
)
def test_what_a_unit_in_place_needs(dropin: str, helps: str) -> None:
    [one] = found(has("groups", {"a": (group(dropin=dropin),)}))
    assert (one["code"], one["remedy"]) == ("in-place", helps)


@pytest.mark.parametrize(
    ("rule", "code", "opens"),
    [
        ("to: metadata, ports: [80]", "metadata-open", "metadata"),
        ("to: [10.0.0.1, 100.100.100.200], ports: [80]", "metadata-open", "100.100.100.200"),
        ("to: 'fe80::1', ports: [80]", "metadata-open", "fe80::1"),
        ("to: 10.0.0.1, ports: [443, 2376]", "control-port-open", "port 2376, the Docker API"),
    ],
)
def test_what_a_rule_opens_literally_is_told_as_long_as_it_does(rule: str, code: str, opens: str) -> None:
    host = Host({"rules.d/a.yaml": rules("a", f"[{{{rule}, name: r, expires: '2026-03-01T13:00:00Z'}}]")}).start()
    view, in_force = host.engine.view, host.engine.in_force
    [one] = findings.all_of(view, in_force, START)
    assert (one["code"], one["severity"], one["workload"]) == (code, "warning", "a")
    assert one["text"] == f"rule r (rules.d/a.yaml:4) opens {opens}"
    assert list(findings.all_of(view, in_force, START + timedelta(hours=1))) == []


def test_many_rules_are_one_finding() -> None:
    egress = "[{to: metadata, ports: [80], name: r}, {to: [169.254.1.1, 169.254.1.2], ports: [80]}]"
    host = Host({"rules.d/a.yaml": rules("a", egress)}).start()
    [one] = findings.all_of(host.engine.view, host.engine.in_force, START)
    assert one["text"].endswith("opens metadata, and 2 more")


def test_what_is_lent_has_no_place() -> None:
    host = Host({"rules.d/a.yaml": rules("a", "[{to: metadata, ports: [80], name: r}]")}).start()
    in_force = host.engine.in_force
    assert in_force
    workload = in_force.policy.workloads["a"]
    lent = replace(workload, egress=tuple(replace(rule, place=NOWHERE) for rule in workload.egress))
    policy = replace(in_force.policy, workloads={"a": lent})
    [one] = findings.all_of(host.engine.view, replace(in_force, policy=policy), START)
    assert one["text"] == "rule r opens metadata"


@pytest.mark.parametrize("rule", ["to: 169.254.0.0/16, ports: [80]", "to: any, ports: [any]"])
def test_what_opens_nothing_of_it_is_not_told(rule: str) -> None:
    host = Host({"rules.d/a.yaml": rules("a", f"[{{{rule}}}]")}).start()
    assert list(findings.all_of(host.engine.view, host.engine.in_force, START)) == []


def listens(*ports: int, mode: str = "enforce", ingress: str = "[{from: [], ports: [9090]}]") -> list[Json]:
    host = Host({"rules.d/a.yaml": rules("a", ingress=ingress, mode=mode)}).start()
    in_force = host.engine.in_force
    assert in_force
    found = [Listener("a", "tcp", ip_address("::"), port) for port in ports for _ in range(2)]
    return list(findings.of_listeners(exposure.of_workloads(in_force.policy, found, START), in_force))


def test_what_listens_without_a_rule() -> None:
    [one] = listens(8000, 9090)
    assert (one["code"], one["severity"], one["workload"]) == ("listens-without-rule", "info", "a")
    assert one["text"] == "listens on port 8000, and no ingress rule says so: nobody but itself reaches it"
    [one] = listens(*range(1, 12), mode="observe")
    assert "ports 1, 2, 3, 4, 5, 6, 7, 8 and 3 more, and" in one["text"]
    assert one["text"].endswith("once it is enforced, nobody but itself reaches them")


def test_a_rule_that_lets_nobody_in_documents_a_port() -> None:
    assert listens(9090) == []


def test_an_alarm_is_shown_for_an_hour() -> None:
    view, in_force = known()
    view.alarms.append((START, "x"))
    later = START + findings.ALARM_SHOWN
    assert list(findings.all_of(view, in_force, later)) == []
    assert len(list(findings.all_of(view, in_force, later - timedelta(seconds=1)))) == 1


def test_before_any_policy_only_what_is_of_no_policy() -> None:
    view = View(START)
    view.lost, view.agrees, view.units = 1, False, (Unit("a.service", PLACE, 1),)
    assert [one["code"] for one in findings.all_of(view, None, START)] == ["log-loss"]
