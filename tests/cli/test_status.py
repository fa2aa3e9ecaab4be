"""`penstock status` against a daemon that says what it is told to say."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cli.conftest import Call
from cli.fake_daemon import BY_NAME, FakeDaemon, finding, status, workload
from cli.test_lent import saved as saved_grant
from cli.test_lent import write as write_lent
from penstock.cli import watching
from penstock.cli.context import CannotTell
from penstock.cli.status import in_force
from penstock.core.wire import Json, Message

KERNEL = {"backend": "nft", "agrees": True, "checked": "2026-11-25T02:15:07Z"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (status(), True),
        (status(workload(egress="observing", ingress="locked")), True),
        (status(workload(), workload("b", ingress="degraded")), False),
        (status(workload(egress="unenforced")), False),
        (status(kernel=KERNEL | {"agrees": False}), False),
        (status(kernel=KERNEL | {"agrees": None}), False),
        (status(findings=[finding("x", "warning"), finding("y", "info")]), True),
        (status(findings=[finding("x", "error")]), False),
        (status(findings=[finding("not-yet-enforced", "warning")]), False),
        (status(policy={"hash": None, "applied": None, "pending_files": None}, workloads=[]), False),
    ],
)
def test_in_force(daemon: FakeDaemon, call: Call, said: Json, expected: bool) -> None:
    assert in_force(said) is expected
    daemon.replies["status"] = said
    for option in ((), ("--json",)):
        assert call("status", *option).exit_code == (0 if expected else 1)


def test_json_is_the_daemons_own(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["status"] = said = status(new_key=5)
    assert json.loads(call("status", "--json").stdout) == said


def test_no_daemon(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    done = call("status")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("penstock: no daemon answers at ")
    done = call("status", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 2
    assert said.pop("time").endswith("Z")
    assert said == {
        "v": 1,
        "daemon": {"running": False, "pid": None, "version": None, "since": None},
        "policy": {"hash": None, "applied": None, "pending_files": None, "confirm_until": None},
        "kernel": {"backend": None, "agrees": None, "checked": None},
        "workloads": [],
        "implicit": [],
        "grants": [],
        "findings": [],
    }


def test_a_dead_daemon_that_left_something_unconfirmed(daemon: FakeDaemon, call: Call) -> None:
    (daemon.run / "unconfirmed").touch()
    assert "confirmed" not in call("status").stderr, "the daemon itself says that"
    daemon.close()
    assert "nobody has confirmed" in call("status").stderr
    (daemon.run / "unconfirmed").unlink()
    assert "confirmed" not in call("status").stderr


def test_wait_until_it_is_in_force(daemon: FakeDaemon, call: Call) -> None:
    answers = [status(workload(egress="degraded")), status()]
    daemon.replies["status"] = lambda _: answers.pop(0)
    assert call("status", "--wait", "--timeout", "20s").exit_code == 0
    assert answers == []


def test_wait_for_the_daemon_to_be_there(daemon: FakeDaemon, call: Call) -> None:
    daemon.close()
    (daemon.run / "control.sock").unlink()
    later = threading.Timer(0.2, daemon.start)
    later.start()
    assert call("status", "--wait", "--timeout", "20s").exit_code == 0
    later.join()


def test_wait_ends(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["status"] = status(workload(egress="degraded"))
    done = call("status", "--wait", "--timeout", "0s")
    assert (done.exit_code, done.stderr) == (1, "penstock: not in force after 0 s\n")
    daemon.close()
    assert call("status", "--wait", "--timeout", "0s").exit_code == 2


def test_waiting_does_not_help_who_may_not_ask(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(*_: object) -> Json:
        asked.append(1)
        raise CannotTell("only root may ask")

    monkeypatch.setattr("penstock.cli.status.ask", ask)
    assert call("status", "--wait").exit_code == 2
    assert len(asked) == 1


def test_wait_for_a_workload_that_is_not_there_yet(daemon: FakeDaemon, call: Call) -> None:
    daemon.replies["hits"] = {"rules": {}, "names": {}}
    answers = [status(), status(workload("ollama"))]
    daemon.replies["status"] = lambda _: answers.pop(0)
    assert call("status", "ollama", "--wait", "--timeout", "20s").exit_code == 0


NOTHING = ("file", "line", "names")


def about_one(daemon: FakeDaemon) -> None:
    said: Json = {"rules": {"db": 1234}, "names": {BY_NAME: 3}}
    daemon.replies["hits"] = lambda message: said if message.arguments else {}
    daemon.replies["status"] = status(
        workload(),
        workload("ollama", egress="degraded"),
        findings=[finding(workload="litellm"), finding(workload="ollama", severity="error"), finding("x")],
    )


def test_one_workload(daemon: FakeDaemon, call: Call) -> None:
    about_one(daemon)
    done = call("status", "litellm", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 0
    assert [one["name"] for one in said["workloads"]] == ["litellm"]
    assert [one["workload"] for one in said["findings"]] == ["litellm", None]
    assert Message("hits", {"workload": "litellm"}) in daemon.requests
    rules: list[dict[str, Any]] = said["rules"]
    assert rules[0] == {
        "id": "db",
        "direction": "out",
        "text": "10.30.1.5:5432",
        "file": f"{daemon.home}/config/rules.d/litellm.yaml",
        "line": 5,
        "hits": 1234,
        "names": None,
    }
    assert [rule["hits"] for rule in rules] == [1234, None, None]
    assert [rule["names"] for rule in rules] == [None, 3, None]
    text = f"{BY_NAME}  {rules[1]['file']}:{rules[1]['line']}  names learned now: 3\n"
    assert text in call("status", "litellm").stdout
    assert call("status", "ollama").exit_code == 1


def test_what_is_lent_to_it_is_among_its_rules(daemon: FakeDaemon, call: Call) -> None:
    about_one(daemon)
    write_lent(daemon, saved_grant())
    daemon.replies["hits"] = {"rules": {"grant-1a2b3c4d": 7}, "names": {}}
    found = json.loads(call("status", "litellm", "--json").stdout)["rules"]
    assert [rule for rule in found if rule["file"] is None] == [
        {"id": "grant-1a2b3c4d", "direction": "out", "text": "10.30.1.9:5432", "hits": 7} | dict.fromkeys(NOTHING)
    ]


def test_one_workload_for_people(daemon: FakeDaemon, call: Call) -> None:
    about_one(daemon)
    out = call("status", "litellm").stdout
    assert "     1,234  out 10.30.1.5:5432\n" in out
    assert f"db  {daemon.home}/config/rules.d/litellm.yaml:5\n" in out
    assert "         -  in  clients -> 8000\n" in out


def test_a_workload_that_is_not_there(daemon: FakeDaemon, call: Call) -> None:
    done = call("status", "litelm", "--json")
    assert done.exit_code == 2
    assert done.stderr == "penstock: the applied policy has no workload `litelm`; did you mean `litellm`?\n"
    assert json.loads(done.stdout)["daemon"]["running"] is True


# --- again and again ---


@pytest.fixture
def three_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Somebody presses ctrl-c after the third."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(watching, "time", SimpleNamespace(sleep=sleep))
    return waited


def test_watch(daemon: FakeDaemon, call: Call, three_looks: list[float]) -> None:
    answers = [status(), status(workload(egress="degraded")), status()]
    daemon.replies["status"] = lambda _: answers.pop(0)
    done = call("status", "--watch")
    assert done.exit_code == 0, "as the last look"
    assert three_looks == [2.0] * 3
    assert done.stdout.count("kernel    nft agrees") == 3
    assert done.stdout.count("degraded") == 1
    assert "Always allowed" not in done.stdout


def test_watch_goes_on_without_a_daemon(daemon: FakeDaemon, call: Call, three_looks: list[float]) -> None:
    daemon.close()
    done = call("status", "--watch", "--every", "5s")
    assert (done.exit_code, three_looks) == (2, [5.0] * 3)
    assert done.stdout.count("penstock: no daemon answers at ") == 3


def test_watch_as_json_is_an_object_a_line(daemon: FakeDaemon, call: Call, three_looks: list[float]) -> None:
    about_one(daemon)
    lines = call("status", "ollama", "--watch", "--json").stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        said = json.loads(line)
        assert [one["name"] for one in said["workloads"]] == ["ollama"]
        assert "rules" in said


def test_watch_goes_on_when_a_workload_goes_in_between(
    daemon: FakeDaemon, call: Call, three_looks: list[float]
) -> None:
    about_one(daemon)
    daemon.replies["hits"] = ("the policy has changed meanwhile", "")
    done = call("status", "ollama", "--watch")
    assert done.stdout.count("the policy has changed meanwhile") == 3
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--watch", "--wait"), "give one of them"),
        (("--every", "2s"), "give both"),
        (("--watch", "--every", "0s"), "a second at least"),
    ],
)
def test_watch_refuses_nonsense(call: Call, options: tuple[str, ...], said: str) -> None:
    done = call("status", *options)
    assert done.exit_code == 2
    assert said in done.stderr
