"""Generated policies, real packets: the compiled ruleset answers as the reference evaluator does.

Arrival is witnessed at the far end: by a sniffer on the remote host for what goes out, by the workload's own
sockets for what comes in.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .bench import Bench
from .examine import Examination
from .mutations import MUTATIONS, Mutation

pytestmark = pytest.mark.root

POLICIES, PROBES = 400, 300
ENOUGH = 25
"""Policies after which a seeded bug must have shown; most show in the first."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    from conftest import require_root

    require_root()
    with Bench() as made:
        yield made


def test_kernel_and_evaluator_agree(bench: Bench, count: int) -> None:
    examination = Examination(bench, PROBES)
    wrong = [text for seed in range(POLICIES // count) for text in examination.run(seed)]
    bench.forget()
    assert wrong == []
    assert examination.sent > POLICIES // count * PROBES
    assert examination.controls > examination.sent // 4


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_seeded_bug_is_caught(bench: Bench, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.reset()
    mutation.plant(monkeypatch)
    examination = Examination(bench, PROBES)
    try:
        caught = (text for seed in range(ENOUGH) for text in examination.run(seed, control=False))
        disagreement = next(caught, None)
        assert disagreement, f"not caught: {mutation.what}"
        assert "syntax error" not in disagreement  # that would be a bug of the mutation
    finally:
        bench.reset()
        bench.forget()
