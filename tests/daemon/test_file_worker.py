"""What effects do to files; the kernel's half is tested with the kernel and with the whole daemon."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from penstock import this_host
from penstock.core import effects, floor, grants, state
from penstock.core.compile import Live
from penstock.core.parse import FileResult, parse, parse_file
from penstock.core.policy import Policy
from penstock.core.surroundings import Session, Surroundings
from penstock.daemon import file_worker, places
from penstock.daemon.clock import now
from penstock.daemon.file_worker import FileWorker
from penstock.daemon.options import Options
from penstock.errors import PenstockError

RULES = b"version: 1\nworkload: a\nmode: enforce\negress: []\ningress: []\n"


@pytest.fixture
def options(tmp_path: Path) -> Options:
    for name in ("config/rules.d", "state", "run", "log"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "config/rules.d/a.yaml").write_bytes(RULES)
    return Options(tmp_path / "config", tmp_path / "state", tmp_path / "run", tmp_path / "log")


def test_the_configuration_is_read_parsed_and_checked(options: Options) -> None:
    read = FileWorker(options).read_config(effects.ReadConfig(7))
    assert read.request == 7
    assert read.files == {"rules.d/a.yaml": RULES}
    assert read.parsed.policy
    assert list(read.parsed.policy.workloads) == ["a"]
    (options.config / "rules.d/b.yaml").write_bytes(RULES + b"tests: [egress 192.0.2.1:1 allow]\n")
    assert FileWorker(options).read_config(effects.ReadConfig(7)).parsed.policy is None


def test_the_configuration_is_held_against_the_host(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever applies; what merely waits in the directory is not."""
    around = Surroundings(frozenset({"lo"}), (Session(ip_address("10.30.0.9"), 22),))
    asked: list[Policy | None] = []

    def look(policy: Policy | None) -> Surroundings:
        asked.append(policy)
        return around

    monkeypatch.setattr(this_host, "around", look)
    text = b"version: 1\nnetworks: {far: {interface: wg0}, c: {cidr: 10.30.0.0/16, plane: inference}}\n"
    (options.config / "penstock.yaml").write_bytes(text + b"host: {admin_ports: [22]}\n")
    files = FileWorker(options)
    read = files.read_config(effects.ReadConfig(7))
    assert read.around is around
    assert asked == [read.parsed.policy]
    assert {"no-interface", "admin-cut"} <= {problem.code for problem in read.parsed.problems}
    assert files.look()
    assert len(asked) == 1


def test_a_file_that_did_not_change_is_not_parsed_again(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def spy(path: str, data: bytes) -> FileResult:
        parsed.append(path)
        return parse_file(path, data)

    monkeypatch.setattr(file_worker, "parse_file", spy)
    files = FileWorker(options)
    files.read_config(effects.ReadConfig(1))
    parsed.clear()
    (options.config / "rules.d/b.yaml").write_bytes(RULES.replace(b"a\n", b"b\n", 1))
    assert files.read_config(effects.ReadConfig(1)).parsed.policy
    assert parsed == ["rules.d/b.yaml"]


@pytest.mark.parametrize("request_number", [None, 1])
def test_a_directory_that_is_missing_or_empty_governs_nobody_by_mistake(
    tmp_path: Path, request_number: int | None
) -> None:
    config = tmp_path / "config"
    files = FileWorker(Options(config, tmp_path, tmp_path, tmp_path))
    with pytest.raises(PenstockError, match="no such directory"):
        files.read_config(effects.ReadConfig(request_number))
    config.mkdir()
    with pytest.raises(PenstockError, match="holds no rule files"):
        files.read_config(effects.ReadConfig(request_number))


def test_the_state_is_staged_then_put(options: Options) -> None:
    files = FileWorker(options)
    files.stage_state(effects.StageState(1, b"one", b"floor 1"))
    assert not (options.state / state.FILE).exists()
    files.commit_state()
    assert (options.state / state.FILE).read_bytes() == b"one"
    assert (options.state / places.FLOOR).read_bytes() == b"floor 1"
    files.stage_state(effects.StageState(2, b"two", b"floor 2"))
    assert (options.state / state.FILE).read_bytes() == b"one"
    files.commit_state()
    assert (options.state / places.FLOOR).read_bytes() == b"floor 2"
    with pytest.raises(PenstockError, match="cannot be written: No such file"):
        files.commit_state()


def saved(number: int) -> bytes:
    return state.encode(state.Applied(f"hash{number}", float(number)))


def kept(options: Options) -> list[str]:
    """Hashes of the present policy and of those before it."""
    read = ((options.state / name) for name in (state.FILE, *state.HISTORY))
    return [state.decode(path.read_bytes()).hash for path in read if path.exists()]


@pytest.mark.parametrize(
    ("applied", "left"),
    [
        ([1], ["hash1"]),
        ([1, 2], ["hash2", "hash1"]),
        ([1, 2, 3, 4], ["hash4", "hash3", "hash2"]),
        ([1, 2, 2], ["hash2", "hash1"]),
        ([1, 2, 3, 2], ["hash2", "hash3", "hash1"]),
        ([1, 2, 3, 2, 3], ["hash3", "hash2", "hash1"]),
    ],
)
def test_three_policies_are_kept_each_once(options: Options, applied: list[int], left: list[str]) -> None:
    files = FileWorker(options)
    for number in applied:
        files.stage_state(effects.StageState(number, saved(number), b"f"))
        files.commit_state()
    assert kept(options) == left
    read = files.read_history(effects.ReadHistory(1, "")).saved
    assert [state.decode(data).hash for data in read] == left[1:]


def test_a_damaged_policy_is_not_kept(options: Options) -> None:
    files = FileWorker(options)
    for number in (1, 2):
        files.stage_state(effects.StageState(number, saved(number), b"f"))
        files.commit_state()
    (options.state / state.FILE).write_bytes(b"{")
    files.stage_state(effects.StageState(3, saved(3), b"f"))
    files.commit_state()
    assert kept(options) == ["hash3", "hash1"]


def test_the_floor_is_written_only_when_it_is_another(options: Options) -> None:
    files = FileWorker(options)
    path = options.state / places.FLOOR
    files.keep_floor(effects.KeepFloor(b"one"))
    before = path.stat().st_ino
    files.keep_floor(effects.KeepFloor(b"one"))
    assert path.stat().st_ino == before
    path.write_bytes(b"damaged")
    files.keep_floor(effects.KeepFloor(b"one"))
    assert path.read_bytes() == b"one"


def test_a_trial_leaves_a_mark_until_its_end(options: Options) -> None:
    files = FileWorker(options)
    files.end_trial()
    files.mark_trial(effects.MarkTrial(1))
    files.mark_trial(effects.MarkTrial(1))
    assert (options.run / places.TRIAL).exists()
    files.end_trial()
    assert not (options.run / places.TRIAL).exists()


def test_the_floor_that_goes_with_a_policy_has_no_levels(options: Options) -> None:
    policy = Policy(workloads={}, hash="h")
    effect = effects.Compile(3, policy, Live(now(), {}, 2, levels=(3,)), floor=True)
    compiled = FileWorker(options, "/lab").compile(effect)
    header = floor.parse_header(compiled.floor)
    assert header == floor.Header("h", ("lab/penstock.slice",))
    assert b"_place" not in compiled.floor
    assert any("place" in name for name in compiled.ruleset.maps)
    assert FileWorker(options).compile(replace(effect, floor=False)).floor == b""


def test_a_look_at_the_files(options: Options) -> None:
    files = FileWorker(options)
    found = files.look()
    assert found is not None
    assert (list(found.digests), found.errors) == (["rules.d/a.yaml"], 0)
    (options.config / "rules.d/b.yaml").write_text("version: 1\nworkload: b\n")
    broken = files.look()
    assert broken is not None
    assert broken.errors > 0
    assert files.look() is broken, "what did not change is not parsed again"
    (options.config / "rules.d/x.yaml").mkdir()
    assert files.look() is None


def test_a_look_at_the_presets_in_use(options: Options) -> None:
    preset = "version: 1\npreset: {}\ntitle: x\nsource: measured\ndate: 2026-01-01\negress: []\n"
    (options.config / "presets").mkdir()
    for name in ("mine", "other"):
        (options.config / f"presets/{name}.yaml").write_text(preset.format(name))
    rules = options.config / "rules.d/a.yaml"
    rules.write_bytes(RULES.replace(b"egress: []", b"egress: [{use: mine}]"))
    files = FileWorker(options)
    found = files.look()
    assert found is not None
    assert (list(found.digests), found.errors) == (["rules.d/a.yaml", "presets/mine.yaml"], 0)
    (options.config / "presets/mine.yaml").write_text("version: 1\npreset: [mine\n")
    broken = files.look()
    assert broken is not None
    assert broken.errors > 0
    assert broken.digests.keys() == found.digests.keys(), "by the name of its file"
    assert broken.digests != found.digests
    assert files.look() is broken, "what did not change is not parsed again"


def test_what_is_lent_is_no_part_of_the_floor(options: Options) -> None:
    bare = parse({"rules.d/a.yaml": RULES}).policy
    more = RULES.replace(b"egress: []", b"egress: [{to: 192.0.2.77, ports: [1]}]")
    lent = parse({"rules.d/a.yaml": more}).policy
    assert bare
    assert lent
    live = Live(now(), {"a": 3}, 1)
    files = FileWorker(options)
    compiled = files.compile(effects.Compile(3, lent, live, floor=True, bare=bare))
    assert any(address_set.elements for address_set in compiled.ruleset.sets)
    assert compiled.floor == files.compile(effects.Compile(4, bare, live, floor=True)).floor
    assert b"192.0.2.77" not in compiled.floor


def test_what_is_lent_is_one_file_and_its_history_another(options: Options) -> None:
    files = FileWorker(options)
    for data in (b"one", b"two"):
        files.save_grants(data)
        assert (options.state / grants.FILE).read_bytes() == data
    for event in ("made", "ended"):
        files.account(effects.Account({"event": event, "reason": "ü"}))
    log = (options.log / grants.LOG_NAME).read_bytes()
    assert [json.loads(line) for line in log.splitlines()] == [
        {"event": event, "reason": "ü"} for event in ("made", "ended")
    ]
    assert log.isascii()
    (options.log / grants.LOG_NAME).unlink()
    (options.log / grants.LOG_NAME).mkdir()
    with pytest.raises(PenstockError, match="cannot be written"):
        files.account(effects.Account({}))


# --- metrics ---


def test_metrics_are_for_everybody_and_never_half_written(options: Options) -> None:
    files, path = FileWorker(options), options.metrics
    assert path.parent == options.run.parent / "run-metrics"
    before = os.umask(0o077)
    try:
        files.write_metrics(effects.WriteMetrics(b"one 1\n"))
        held = path.open("rb")
        files.write_metrics(effects.WriteMetrics(b"two 2\n"))
    finally:
        os.umask(before)
    with held:
        assert held.read() == b"one 1\n", "who reads has the old or the new one"
    assert path.read_bytes() == b"two 2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    files.write_metrics(effects.WriteMetrics(b""))
    assert not path.exists()
    files.write_metrics(effects.WriteMetrics(b""))


def test_metrics_that_cannot_be_written_say_why(options: Options, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    options.metrics.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PenstockError, match="something else is where its directory should be"):
        FileWorker(options).write_metrics(effects.WriteMetrics(b"x 1\n"))
    assert not list((tmp_path / "elsewhere").iterdir())
    options.metrics.parent.unlink()
    options.metrics.parent.write_text("")
    with pytest.raises(PenstockError, match="cannot be written"):
        FileWorker(options).write_metrics(effects.WriteMetrics(b"x 1\n"))
