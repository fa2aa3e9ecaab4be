"""`penstock check`, as a script sees it."""

import json
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock import files
from penstock.cli.check import check
from penstock.core.surroundings import Session, Surroundings

GOOD = "version: 1\nworkload: w\nmode: enforce\negress:\n  - {to: 10.0.0.1, ports: [443]}\ningress: []\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "rules.d").mkdir()
    (tmp_path / "penstock.yaml").write_text("version: 1\nnetworks: {net: {cidr: 10.0.0.0/8}}\n")
    (tmp_path / "rules.d/w.yaml").write_text(GOOD)
    return tmp_path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(check, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_good(home: Path) -> None:
    assert run(home) == (0, "", "2 files, 0 errors, 0 warnings\n")
    assert run(home, "--json") == (0, "[]\n", "2 files, 0 errors, 0 warnings\n")


def test_mistakes_of_all_files_in_one_run(home: Path) -> None:
    (home / "penstock.yaml").write_text("version: 2\n")
    (home / "rules.d/w.yaml").write_text(GOOD + "x: 1\n")
    (home / "rules.d/v.yaml").mkdir()
    status, out, err = run(home)
    assert (status, err) == (1, "3 files, 3 errors, 0 warnings\n")
    lines = out.splitlines()
    assert lines[0] == (
        f"{home}/penstock.yaml:1:10: error: `2` is no version of the policy language; write `version: 1`"
    )
    assert [line.partition(" ")[0] for line in lines[1:]] == [
        f"{home}/rules.d/v.yaml:1:1:", f"{home}/rules.d/w.yaml:7:1:"]  # fmt: skip


def test_warnings_alone_are_no_failure(home: Path) -> None:
    (home / "rules.d/w.yaml").write_text(GOOD.replace("mode:", "match: {container: c}\nmode:"))
    status, out, _ = run(home, "--json")
    assert status == 0
    (problem,) = json.loads(out)
    assert problem == {
        "file": f"{home}/rules.d/w.yaml", "line": 2, "column": 11, "severity": "warning",
        "code": "not-yet-enforced", "message": "recognising container c is not yet built",
        "hint": "put processes in with `penstock run w -- COMMAND`"}  # fmt: skip


def test_a_failing_test_is_an_error_at_its_line(home: Path) -> None:
    (home / "rules.d/w.yaml").write_text(
        GOOD + "tests:\n  - egress 10.0.0.1:443 allow\n  - egress 10.0.0.1:443 deny\n"
    )
    status, out, _ = run(home)
    assert status == 1
    assert out.startswith(f"{home}/rules.d/w.yaml:9:5: error: ")
    assert len(out.splitlines()) == 1


def test_one_file_alone(home: Path) -> None:
    path = home / "rules.d/w.yaml"
    path.write_text(GOOD.replace("10.0.0.1", "[net, 'workload:elsewhere']"))
    status, out, err = run(path)
    assert (status, out, err) == (0, "", "1 file, 0 errors, 0 warnings\n"), "whoever else there is"
    path.write_text(GOOD.replace("10.0.0.1", "nett"))
    assert run(path)[1].startswith(f"{path}:5:10: error: there is no network `nett`; did you mean `net`?")


def test_one_file_alone_with_a_mistake_around_it(home: Path) -> None:
    (home / "penstock.yaml").write_text("version: 1\nbad: 1\n")
    status, out, _ = run(home / "rules.d/w.yaml")
    assert status == 1
    assert out.startswith(f"{home}/penstock.yaml:2:1: error: a host file has no key `bad`;")


def test_nothing_there(tmp_path: Path) -> None:
    assert run(tmp_path / "x")[0] == 1
    assert run(tmp_path)[0] == 1


# --- drop-ins, the vendor's included ---

FLEET = "version: 1\nnetworks: {fleet: {cidr: 10.9.0.0/16}}\n"
FOR_FLEET = GOOD.replace("workload: w", "workload: v").replace("10.0.0.1", "fleet")


@pytest.fixture
def vendor(home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path_factory.mktemp("lib")
    for part in files.DROP_INS:
        (made / part).mkdir()
    (made / "penstock.d/fleet.yaml").write_text(FLEET)
    (made / "rules.d/v.yaml").write_text(FOR_FLEET)
    monkeypatch.setattr(files, "VENDORS", {home: made})
    return made


def test_a_mistake_of_the_vendor_is_told_where_it_is(home: Path, vendor: Path) -> None:
    assert run(home) == (0, "", "4 files, 0 errors, 0 warnings\n")
    (vendor / "rules.d/v.yaml").write_text(FOR_FLEET + "x: 1\n")
    status, out, _ = run(home)
    assert (status, out.partition(" ")[0]) == (1, f"{vendor}/rules.d/v.yaml:7:1:")
    (home / "rules.d/v.yaml").touch()
    assert run(home) == (0, "", "3 files, 0 errors, 0 warnings\n")


def test_one_file_is_checked_with_the_drop_ins_around_it(home: Path, vendor: Path) -> None:
    (home / "rules.d/u.yaml").write_text(FOR_FLEET)
    for path in (home / "rules.d/u.yaml", vendor / "rules.d/v.yaml", vendor / "penstock.d/fleet.yaml"):
        assert run(path) == (0, "", "1 file, 0 errors, 0 warnings\n")
    (vendor / "penstock.d/fleet.yaml").unlink()
    assert run(home / "rules.d/u.yaml")[0] == 1
    (home / "penstock.d").mkdir()
    (home / "penstock.d/fleet.yaml").write_text(FLEET)
    assert run(vendor / "rules.d/v.yaml")[0] == 0


def test_one_preset(home: Path) -> None:
    (home / "presets").mkdir()
    path = home / "presets/hub.yaml"
    text = "version: 1\npreset: hub\ntitle: t\nsource: s\ndate: 2026-11-01\negress: [{to: '*.co.uk', for: x}]\n"
    path.write_text(text)
    status, out, err = run(path)
    assert (status, err) == (1, "1 file, 1 error, 1 warning\n")
    assert f"{path}:6:31: error: `for` is `x`; write pull or serve\n" in out
    assert f"{path}:6:10: warning: anybody can get a name under `co.uk`" in out
    (home / "rules.d/w.yaml").write_text(GOOD.replace("{to: 10.0.0.1, ports: [443]}", "{use: hub}"))
    status, out, _ = run(home)
    assert status == 1
    assert f"{path}:6:31: error: `for` is `x`; write pull or serve\n" in out


# --- the host it is called on ---

NETWORKS = """version: 1
networks:
  net: {cidr: 10.0.0.0/8, plane: admin}
  far: {interface: wg0}
"""


@pytest.fixture
def this_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has one interface, and an administrator from nowhere."""
    found = Surroundings(frozenset({"eth0"}), (Session(ip_address("203.0.113.9"), 22, "eth0"),))
    monkeypatch.setattr("penstock.cli.check.around", lambda policy: found)
    (home / "penstock.yaml").write_text(NETWORKS)
    return home


def test_what_differs_from_this_host_is_a_warning(this_host: Path) -> None:
    status, out, err = run(this_host)
    assert (status, err) == (0, "2 files, 0 errors, 2 warnings\n")
    here = f"{this_host}/penstock.yaml"
    assert out.splitlines() == [
        f"{here}:3:3: warning: the one session at port 22 does not come from it: 203.0.113.9; "
        "if that is how you come in, let an admin network hold the address",
        f"{here}:4:3: warning: there is no interface `wg0` on this host, or not yet; "
        "`ip link` shows those that are there",
    ]
    listed = json.loads(run(this_host, "--json")[1])
    assert [problem["code"] for problem in listed] == ["admin-session", "no-interface"]


def test_of_one_file_only_its_own_networks_are_held_against_this_host(this_host: Path) -> None:
    assert run(this_host / "rules.d/w.yaml") == (0, "", "1 file, 0 errors, 0 warnings\n")
    assert run(this_host / "penstock.yaml")[2] == "1 file, 0 errors, 2 warnings\n"


def test_what_is_understood_of_files_with_mistakes_is_held_against_it_too(this_host: Path) -> None:
    (this_host / "penstock.yaml").write_text(NETWORKS + "bad: 1\n")
    assert run(this_host)[2] == "2 files, 1 error, 2 warnings\n"
