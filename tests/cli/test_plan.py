"""`penstock plan`: the files against what is applied."""

from __future__ import annotations

import json
import shutil
from ipaddress import ip_address
from pathlib import Path

import pytest

from cli.conftest import Call
from cli.fake_daemon import FILES, FakeDaemon
from penstock.core import state
from penstock.core.surroundings import Session, Surroundings
from penstock.enrol import dropin


@pytest.fixture
def rules(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rule file of the configuration, to be changed."""
    monkeypatch.setenv("COLUMNS", "200")
    return daemon.home / "config/rules.d/litellm.yaml"


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing(call: Call, rules: Path) -> None:
    done = call("plan")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "nothing would change\n", "")
    rules.write_text("# a comment\n" + rules.read_text())
    text = "nothing would change: the files differ in comments, order or tests only\n"
    assert call("plan").stdout == text


def test_a_change_for_people(call: Call, rules: Path) -> None:
    replaced(rules, "[5432]", "[5433]")
    replaced(rules, "enforce", "observe")
    replaced(rules, "  - {to: registry.example.org}\n", "")
    host = rules.parents[1] / "penstock.yaml"
    replaced(host, "10.30.0.0/16", "10.31.0.0/16")
    (rules.parent / "ollama.yaml").unlink()
    done = call("plan")
    assert (done.exit_code, done.stderr) == (0, "")
    ids = [line.split()[-1] for line in done.stdout.splitlines() if "egress-" in line]
    assert done.stdout == f"""\
~ workload litellm
    mode enforce -> observe: nothing is refused, only recorded
    penstock's resolver takes its look-ups no more: they go where its rules let them
  ~ egress  10.30.1.5:5433
      db  {rules}:5
      ports: + 5433; - 5432
  - egress  registry.example.org:443
      {ids[0]}
    newly allowed: everything: nothing is refused, only recorded
- workload ollama
    newly allowed: everything, for units governed where they are: nothing governs them then
    newly denied: everything, for processes in its slice: they belong to no workload then
~ network clients
    cidr: + 10.31.0.0/16; - 10.30.0.0/16
    rules that name it: litellm {ingress_id(call)}

2 workloads, 2 rules, 1 network; nothing is restarted.  Next: penstock apply

{rules}:2:11: warning: recognising container litellm is not yet built; put processes in with \
`penstock run litellm -- COMMAND`
"""


def ingress_id(call: Call) -> str:
    """The derived id of the one ingress rule."""
    said = json.loads(call("plan", "--json").stdout)
    found: str = said["networks"][0]["touches"][0]["rule"]
    assert found.startswith("ingress-")
    return found


def test_json(call: Call, rules: Path) -> None:
    replaced(rules, "[5432]", "[5433]")
    done = call("plan", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (said["v"], said["changed"]) == (1, True)
    assert said["applied"] != said["files"]
    assert said["workloads"][0]["rules"][0]["details"] == ["ports: + 5433; - 5432"]
    assert {problem["severity"] for problem in said["problems"]} == {"warning"}


def test_errors_in_the_files(call: Call, rules: Path) -> None:
    replaced(rules, "[5432]", "[99999]")
    done = call("plan")
    assert done.exit_code == 1
    assert f"{rules}:5:29: error: `99999` is out of range; ports go from 1 to 65535\n" in done.stdout
    assert done.stderr == "penstock: these files would not be applied\n"
    done = call("plan", "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["changed"], said["files"]) == (1, None, None)
    assert said["problems"]


def test_a_failing_test_is_an_error(call: Call, rules: Path) -> None:
    rules.write_text(rules.read_text() + "tests: [egress 10.30.1.5:5432 deny]\n")
    assert call("plan").exit_code == 1


def test_nothing_was_applied_yet(daemon: FakeDaemon, call: Call, rules: Path) -> None:
    (daemon.home / "state/applied.json").unlink()
    done = call("plan")
    assert done.exit_code == 0
    assert "+ workload litellm\n    mode enforce: what no rule allows is refused\n" in done.stdout
    assert json.loads(call("plan", "--json").stdout)["applied"] is None


def test_against_a_copy_or_a_directory(daemon: FakeDaemon, call: Call, rules: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    shutil.copy(daemon.home / "state/applied.json", copy)
    other = tmp_path / "other"
    for name, data in FILES.items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(data)
    replaced(rules, "[5432]", "[5433]")
    (daemon.home / "state/applied.json").unlink()
    for against in (copy, other):
        done = call("plan", "--against", against)
        assert done.exit_code == 0
        assert done.stdout.startswith("~ workload litellm\n  ~ egress  10.30.1.5:5433\n")


def test_cannot_tell(daemon: FakeDaemon, call: Call, rules: Path, tmp_path: Path) -> None:
    def told(*arguments: object) -> str:
        done = call("plan", *arguments)
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        return done.stderr

    assert "there is no such file" in told("--against", tmp_path / "none")
    assert "is no saved state of penstock" in told("--against", rules)
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad"
    (bad / "rules.d").mkdir(parents=True)
    (bad / "rules.d/a.yaml").write_text("x")
    assert "has mistakes; see: penstock check" in told("--against", bad)
    shutil.rmtree(daemon.home / "config")
    assert "there is no such directory" in told()
    (daemon.run / "daemon.json").unlink()
    assert "no daemon has run here yet" in told()


# --- what it opens and closes, and what it means for units ---


def test_what_would_be_allowed_and_denied(call: Call, rules: Path) -> None:
    replaced(rules, "[5432]", "[5433]")
    replaced(rules, "registry.example.org", "mirror.example.org")
    out = call("plan").stdout
    assert "    newly allowed: egress 10.30.1.5:5433; egress mirror.example.org:443\n" in out
    assert "    newly denied: egress 10.30.1.5:5432; egress registry.example.org:443\n" in out
    (reach,) = json.loads(call("plan", "--json").stdout)["reach"]
    assert (reach["workload"], reach["observed"]) == ("litellm", False)
    assert reach["denied"][0] == {
        "direction": "out", "text": "10.30.1.5:5432", "rule": "db", "enforced": True}  # fmt: skip


def test_a_rule_that_only_looks_different_allows_nothing_new(call: Call, rules: Path) -> None:
    replaced(rules, "name: db", "name: vectors")
    out = call("plan").stdout
    assert "vectors" in out
    assert "newly" not in out


def test_from_observing_to_enforcing(call: Call, rules: Path) -> None:
    replaced(rules.parent / "ollama.yaml", "observe", "enforce")
    out = call("plan").stdout
    text = "everything that its rules do not allow; what was recorded: penstock blocks --workload ollama"
    assert f"    newly denied: {text}\n" in out
    assert "nothing is restarted" in out


def test_what_is_observed_is_only_recorded(call: Call, rules: Path) -> None:
    replaced(rules.parent / "ollama.yaml", "egress: []", "egress: [{to: 10.0.0.1, ports: [443]}]")
    assert "    not recorded any more: egress 10.0.0.1:443\n" in call("plan").stdout
    assert json.loads(call("plan", "--json").stdout)["reach"][0]["observed"] is True


def test_a_network_that_grows(call: Call, rules: Path) -> None:
    replaced(rules.parents[1] / "penstock.yaml", "10.30.0.0/16", "10.30.0.0/15")
    out = call("plan").stdout
    assert out.startswith(
        "~ workload litellm\n    its own rules stay; a network that they name changes\n"
        "    newly allowed: ingress 10.31.0.0/16 -> 8000\n"
    )


def test_many_openings_are_not_all_spelled_out(call: Call, rules: Path) -> None:
    many = "".join(f"  - {{to: 10.0.0.{n}, ports: [443]}}\n" for n in range(20))
    replaced(rules, "  - {to: registry", f"{many}  - {{to: registry")
    out = call("plan").stdout
    assert "egress 10.0.0.7:443; and 12 more: penstock plan --json\n" in out
    assert len(json.loads(call("plan", "--json").stdout)["reach"][0]["allowed"]) == 20


@pytest.fixture
def tree(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories that stand for cgroups: ollama runs outside of its slice, and nothing knows it yet."""
    monkeypatch.setattr(dropin, "UNITS", tmp_path / "units")
    made = tmp_path / "cgroup"
    (made / "system.slice/ollama.service").mkdir(parents=True)
    daemon.write(cgroup=made)
    return made


def test_which_units_must_restart(call: Call, rules: Path, tree: Path) -> None:
    assert json.loads(call("plan", "--json").stdout)["restarts"] == []
    replaced(rules.parent / "ollama.yaml", "egress:", "match: {unit: ollama.service}\negress:")
    text = "ollama.service: governed where it is at once; to give it a slice:"
    text += "\n      penstock protect ollama.service"
    assert f"\n\nUnits\n    {text}\n\n1 workload; nothing is restarted." in call("plan").stdout
    dropin.write_pending("ollama.service", "ollama")
    out = call("plan").stdout
    text = "    ollama.service: governed where it is at once; its slice at its next restart:"
    assert f"{text}\n      systemctl" in out
    assert "nothing is restarted" in out
    said = json.loads(call("plan", "--json").stdout)["restarts"]
    assert said == [
        {
            "unit": "ollama.service",
            "workload": "ollama",
            "text": "governed where it is at once; its slice at its next restart",
            "command": "systemctl restart ollama.service",
        }
    ]


def test_units_of_another_host_are_not_known(call: Call, rules: Path, tree: Path, tmp_path: Path) -> None:
    replaced(rules.parent / "ollama.yaml", "egress:", "match: {unit: ollama.service}\negress:")
    said = json.loads(call("plan", "--against", rules.parents[1], "--json").stdout)
    assert (said["restarts"], said["changed"]) == (None, False)


def test_a_drop_in_that_waits_is_told_when_nothing_else_changes(
    daemon: FakeDaemon, call: Call, rules: Path, tree: Path
) -> None:
    replaced(rules.parent / "ollama.yaml", "egress:", "match: {unit: ollama.service}\negress:")
    files = {name: (daemon.home / "config" / name).read_bytes() for name in FILES}
    (daemon.home / "state" / state.FILE).write_bytes(state.encode(state.Applied("abc", 0.0, files)))
    assert call("plan").stdout.startswith("nothing would change")
    dropin.write_pending("ollama.service", "ollama")
    assert "systemctl restart ollama.service" in " ".join(call("plan").stdout.split())


def test_warnings_are_told_to_people_too(call: Call, rules: Path) -> None:
    ollama = rules.parent / "ollama.yaml"
    replaced(ollama, "egress: []", "egress: [{to: 192.0.2.53, ports: [53/udp]}, {use: airgap}]")
    done = call("plan")
    assert "its look-ups go to penstock's resolver from then on" in done.stdout
    assert f"{ollama}:4:10: warning: port 53 has no effect" in done.stdout


# --- the host it is called on ---


def test_who_is_connected_and_would_be_refused(
    call: Call, rules: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = Surroundings(frozenset({"lo"}), (Session(ip_address("10.30.0.9"), 22, ""),))
    monkeypatch.setattr("penstock.cli.plan.around", lambda policy: around)
    host = rules.parents[1] / "penstock.yaml"
    host.write_text(host.read_text() + "host: {admin_ports: [22]}\n")
    done = call("plan")
    assert done.exit_code == 0
    (about_host,) = (line for line in done.stdout.splitlines() if line.startswith(f"{host}:"))
    assert "a session comes from there: 10.30.0.9; `penstock apply --confirm 60s`" in about_host
    assert "admin-cut" in [problem["code"] for problem in json.loads(call("plan", "--json").stdout)["problems"]]
    other = call("plan", "--against", shutil.copy(daemon.home / "state/applied.json", daemon.home / "other.json"))
    assert "admin ports: + 22" in other.stdout
    assert "10.30.0.9" not in other.stdout, "that is about some other host"
    daemon.write({**FILES, "penstock.yaml": host.read_bytes(), "rules.d/litellm.yaml": rules.read_bytes()})
    assert call("plan").stdout == "nothing would change\n"
