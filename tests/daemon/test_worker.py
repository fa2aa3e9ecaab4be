"""What effects do to files; the kernel's half is tested with the kernel and with the whole daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core import effects, state
from penstock.core.parse import FileResult, parse_file
from penstock.daemon import worker
from penstock.daemon.options import Options
from penstock.daemon.worker import FileWorker
from penstock.errors import PenstockError

RULES = b"version: 1\nworkload: a\nmode: enforce\negress: []\ningress: []\n"


@pytest.fixture
def options(tmp_path: Path) -> Options:
    for name in ("config/rules.d", "state", "log"):
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


def test_a_file_that_did_not_change_is_not_parsed_again(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def spy(path: str, data: bytes) -> FileResult:
        parsed.append(path)
        return parse_file(path, data)

    monkeypatch.setattr(worker, "parse_file", spy)
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
    files.stage_state(effects.StageState(1, b"one"))
    assert not (options.state / state.FILE).exists()
    files.commit_state()
    assert (options.state / state.FILE).read_bytes() == b"one"
    files.stage_state(effects.StageState(2, b"two"))
    assert (options.state / state.FILE).read_bytes() == b"one"
    files.commit_state()
    with pytest.raises(PenstockError, match="cannot be written: No such file"):
        files.commit_state()


def test_digests_are_none_when_a_file_cannot_be_read(options: Options) -> None:
    files = FileWorker(options)
    found = files.digests()
    assert found is not None
    assert list(found) == ["rules.d/a.yaml"]
    (options.config / "rules.d/x.yaml").mkdir()
    assert files.digests() is None
