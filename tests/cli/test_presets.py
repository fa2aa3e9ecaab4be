"""`penstock presets`, as a script sees it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from cli.fake_daemon import FakeDaemon
from penstock.cli import download
from penstock.cli.main import penstock
from penstock.cli.presets import presets as command
from penstock.core.presets import EVERYWHERE
from penstock.errors import PenstockError

RECORDED = Path(__file__).parents[1] / "recorded/huggingface-meta.json"
SHIPPED = ["airgap", "docker-hub", "github", "huggingface", "litellm", "modelscope", "ngc", "ollama-registry",
           "open-webui", "ray", "vllm"]  # fmt: skip
MINE = """version: 1
preset: mine
title: our mirror
source: the storage team
date: 2026-11-20
published: https://mirror.example/names.json
egress:
  - {to: [a.example, "*.b.example"], name: files, for: pull, reason: models}
  - {to: 10.0.0.1, ports: [443, icmp], name: old, source: seen, date: 2026-10-01}
known: [{name: stats.example, kind: telemetry, text: counts pulls}]
ports: {inference: [8000], admin: [8000, 9000]}
recognise: {server: vllm, units: [mine.service]}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run directory of a daemon whose configuration has a preset of its own."""
    made = FakeDaemon(tmp_path, {})
    made.write()
    config = Path(json.loads((made.run / "daemon.json").read_text())["config"])
    (config / "presets").mkdir(parents=True)
    (config / "presets/mine.yaml").write_text(MINE)
    return made.run


def presets_of(run: Path) -> Path:
    return Path(json.loads((run / "daemon.json").read_text())["config"]) / "presets"


def call(run: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(penstock, ["--run", str(run), "presets", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_list(run: Path) -> None:
    done = call(run)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["PRESET", "NAMES", "FOR", "DENIED", "DATE", "TITLE"]
    assert [line[0] for line in lines[1:]] == sorted([*SHIPPED, "mine"])
    denied = str(1 + len(EVERYWHERE))
    assert ["mine", "2", "pull", denied, "2026-11-20", "our", "mirror"] in lines


@pytest.mark.parametrize("name", [*SHIPPED, "mine"])
def test_what_is_denied_is_counted_as_it_is_shown(run: Path, name: str) -> None:
    shown = len(json.loads(call(run, "show", name, "--json").stdout)["known"])
    listed = {one["name"]: one["known"] for one in json.loads(call(run, "--json").stdout)["presets"]}
    (row,) = (words for line in call(run).stdout.splitlines() if (words := line.split())[0] == name)
    counts = [word for word in row if word.isdecimal()]  # NAMES and DENIED are the first
    assert (listed[name], counts[1]) == (shown, str(shown))


def test_list_without_a_daemon(tmp_path: Path) -> None:
    done = call(tmp_path / "none", "--json")
    assert done.exit_code == 0
    assert {one["name"] for one in json.loads(done.stdout)["presets"]} >= set(SHIPPED)


def test_list_as_json(run: Path) -> None:
    found = json.loads(call(run, "--json").stdout)
    assert (found["v"], found["problems"]) == (1, [])
    assert next(one for one in found["presets"] if one["name"] == "mine") == {
        "name": "mine", "title": "our mirror", "source": "the storage team", "date": "2026-11-20",
        "file": str(presets_of(run) / "mine.yaml"), "published": "https://mirror.example/names.json", "names": 2,
        "for": ["pull"], "known": 1 + len(EVERYWHERE)}  # fmt: skip


def test_a_preset_with_mistakes(run: Path) -> None:
    path = presets_of(run) / "mine.yaml"
    path.write_text(MINE.replace("kind: telemetry", "kind: x"))
    done = call(run)
    told = f"{path}:10:37: error: `kind` is `x`; write telemetry, metadata or other"
    assert (done.exit_code, done.stderr) == (1, told + "\n")
    assert "mine" not in done.stdout
    done = call(run, "--json")
    assert (done.exit_code, json.loads(done.stdout)["problems"][0]["line"]) == (1, 10)
    done = call(run, "show", "mine")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"penstock: {told.replace(' error:', '')}\n"


def test_two_files_that_say_the_same_name(run: Path) -> None:
    path = presets_of(run) / "other.yaml"
    path.write_text(MINE.replace("preset: mine", "preset: vllm"))
    told = f"{path}:2:9: error: the preset `vllm` is also in vllm.yaml; call this one vllm.yaml to replace it, or"
    done = call(run)
    assert (done.exit_code, done.stderr) == (1, f"{told} give it another name\n")
    assert not any(line.startswith("vllm ") for line in done.stdout.splitlines())
    done = call(run, "show", "vllm")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"penstock: {told.replace(' error:', '')}")
    (presets_of(run) / "other.yaml").rename(presets_of(run) / "vllm.yaml")
    done = call(run, "show", "vllm")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "vllm: our mirror")


@pytest.mark.parametrize("word", ["show", "diff"])
def test_json_before_the_command_is_not_passed_over(run: Path, word: str) -> None:
    done = call(run, "--json", word, "vllm")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"write --json at the end: penstock presets {word} NAME --json" in done.stderr


def test_show(run: Path) -> None:
    done = call(run, "show", "mine")
    assert (done.exit_code, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    for said in (
        "mine: our mirror", "source the storage team; 2026-11-20", "penstock presets diff mine",
        "opens pull a.example, *.b.example models", "- 10.0.0.1 port 443, icmp (seen; 2026-10-01)",
        "telemetry stats.example counts pulls", "metadata metadata.google.internal",
        "inference 8000 admin 8000, 9000 8000 carries both", "programs vllm processes VLLM::* units mine.service",
    ):  # fmt: skip
        assert said in words, said


def test_show_as_json(run: Path) -> None:
    found = json.loads(call(run, "show", "mine", "--json").stdout)
    assert found["egress"] == [
        {"rule": "mine/files", "to": ["a.example", "*.b.example"], "ports": ["443"], "for": "pull",
         "reason": "models", "source": "the storage team", "date": "2026-11-20"},
        {"rule": "mine/old", "to": ["10.0.0.1"], "ports": ["443", "icmp"], "for": None, "reason": "",
         "source": "seen", "date": "2026-10-01"},
    ]  # fmt: skip
    assert found["known"][0] == {
        "name": "stats.example", "kind": "telemetry", "text": "counts pulls", "preset": "mine",
        "source": "the storage team", "date": "2026-11-20"}  # fmt: skip
    assert all(one["source"] and one["date"] for one in found["known"])
    assert found["ports"] == {"inference": ["8000"], "admin": ["8000", "9000"]}
    assert found["recognise"] == {
        "server": "vllm", "programs": ["vllm"], "titles": ["VLLM::"], "units": ["mine.service"]}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_show_each(run: Path, name: str) -> None:
    assert call(run, "show", name).stdout.startswith(f"{name}: ")
    assert json.loads(call(run, "show", name, "--json").stdout)["name"] == name


def test_the_short_links_of_hugging_face_are_open_and_where_that_was_read_is_told(run: Path) -> None:
    egress = json.loads(call(run, "show", "huggingface", "--json").stdout)["egress"]
    (rule,) = (one for one in egress if "hf.co" in one["to"])
    assert (rule["to"], rule["ports"]) == (["hf.co"], ["443"])
    assert rule["source"] == "https://huggingface.co/docs/hub/ollama; not measured"


def test_airgap_says_whose_each_name_is(run: Path) -> None:
    known = {one["name"]: one for one in json.loads(call(run, "show", "airgap", "--json").stdout)["known"]}
    assert (known["stats.example"]["preset"], known["stats.example"]["kind"]) == ("mine", "telemetry")
    opened = known["a.example"]
    assert (opened["preset"], opened["text"]) == ("airgap", "our mirror (preset mine opens it)")
    assert (opened["source"], opened["date"]) == ("the storage team", "2026-11-20")
    assert known["huggingface.co"]["text"] == "Hugging Face model downloads (preset huggingface opens it)"
    assert "the metadata service of Google Cloud" in known["metadata.google.internal"]["text"]
    assert all(one["source"] and one["date"] for one in known.values())
    words = " ".join(call(run, "show", "airgap").stdout.split())
    assert "stats.example mine: counts pulls (the storage team; 2026-11-20)" in words
    assert "a.example our mirror (preset mine opens it) (the storage team; 2026-11-20)" in words


@pytest.mark.parametrize("word", ["show", "diff"])
def test_no_such_preset(run: Path, word: str) -> None:
    done = call(run, word, "huggingfase")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "penstock: there is no preset `huggingfase`; did you mean `huggingface`?\n"
    assert call(run, word).exit_code == 2
    assert call(run, "sow").exit_code == 2


def test_names_are_completed(run: Path) -> None:
    words = ShellComplete(penstock, {}, "penstock", "_X").get_completions(
        ["--run", str(run), "presets", "show"], "m"
    )
    assert [word.value for word in words] == ["mine", "modelscope"]
    assert isinstance(command, click.Group)


# --- diff ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is downloaded; the list is that of `mine`."""
    found: list[str] = []

    def fake(url: str, limit: int) -> bytes:
        found.append(url)
        assert limit == 1 << 20
        return b'{"fileDomains": ["a.example", "x.b.example", "new.example"], "v": 1}'

    monkeypatch.setattr(download, "download", fake)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    return found


def test_diff_against_a_file_asks_nobody(run: Path, asked: list[str]) -> None:
    done = call(run, "diff", "huggingface", "--against", str(RECORDED))
    assert (done.exit_code, done.stderr, asked) == (0, "", [])
    assert done.stdout == "no difference: the preset huggingface opens what the list has, 17 names\n"


def test_diff_says_whom_it_asks(run: Path, asked: list[str]) -> None:
    done = call(run, "diff", "mine")
    assert done.stderr == "asking https://mirror.example/names.json\n"
    assert asked == ["https://mirror.example/names.json"]
    assert done.stdout.splitlines() == [
        "+ new.example  is in the list, and the preset does not open it",
        "the preset mine of 2026-11-20 differs from the list, which has 3 names",
    ]
    assert done.exit_code == 1


def test_diff_says_through_which_proxy(run: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy.example:3128")
    assert "through the proxy proxy.example:3128\n" in call(run, "diff", "mine").stderr


def test_diff_as_json(run: Path, asked: list[str], tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"xDomains": ["a.example"], "other": 1}')
    done = call(run, "diff", "mine", "--against", str(path), "--json")
    assert (done.exit_code, asked) == (1, [])
    assert json.loads(done.stdout) == {
        "v": 1, "preset": "mine", "date": "2026-11-20", "against": str(path), "names": 1, "same": False,
        "missing": [], "extra": ["*.b.example"], "ignored": ["other"]}  # fmt: skip


def test_diff_that_fails(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.json"
    path.write_text("<html>")
    done = call(run, "diff", "mine", "--against", str(path))
    assert (done.exit_code, done.stderr) == (1, f"penstock: {path}: is no list of names: it is not JSON\n")
    assert call(run, "diff", "mine", "--against", str(tmp_path / "none")).exit_code == 1

    def refuse(url: str, limit: int) -> bytes:
        raise PenstockError("cannot be downloaded: Connection refused", where=url)

    monkeypatch.setattr(download, "download", refuse)
    done = call(run, "diff", "mine")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "cannot be downloaded: Connection refused\n" in done.stderr


def test_diff_without_a_list(run: Path, asked: list[str]) -> None:
    done = call(run, "diff", "ray")
    assert (done.exit_code, asked) == (2, [])
    assert done.stderr.startswith("penstock: the upstream of `ray` publishes no list that is known; with")
