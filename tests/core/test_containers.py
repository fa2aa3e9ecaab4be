from __future__ import annotations

import pytest

from penstock.core.containers import CLIENTS, ENGINES, is_container

ID = "04e3846dd0c6a41d56964079da81f141f768bc2c8a58a39767b5356d684909fa"


@pytest.mark.parametrize(
    "name",
    [
        f"libpod-{ID}.scope",
        f"libpod-{ID}",
        f"libpod-payload-{ID}",
        f"docker-{ID}.scope",
        f"nerdctl-{ID}.scope",
        ID,
    ],
)
def test_names_that_engines_give(name: str) -> None:
    assert is_container(name)


@pytest.mark.parametrize(
    "name",
    [f"libpod-conmon-{ID}.scope", "docker.service", "runtime", "podman-1.scope", "run-12345678901234.scope", ""],
)
def test_and_others(name: str) -> None:
    assert not is_container(name)


def test_who_stays_with_a_container_had_it_made_or_minds_it() -> None:
    assert {"conmon"} == ENGINES - CLIENTS
