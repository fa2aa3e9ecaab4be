"""`penstock plan`: the files against what is applied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.conftest import Call
from cli.fake_daemon import FILES, FakeDaemon


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
    mode enforce -> observe: nothing is refused any more, only recorded
  ~ egress  10.30.1.5:5433
      db  {rules}:5
      ports: + 5433; - 5432
  - egress  registry.example.org:443
      {ids[0]}
- workload ollama
    its processes stay where they are and may reach nothing: they belong to no workload then
~ network clients
    cidr: + 10.31.0.0/16; - 10.30.0.0/16
    rules that name it: litellm {ingress_id(call)}

2 workloads, 2 rules, 1 network; nothing is restarted.  Put it in force with: penstock apply
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
