"""Whether matching was proven, and when it is tried again."""

from __future__ import annotations

from fake_host import START

from penstock.core.effects import Journal, Prove
from penstock.core.prover import Prover
from penstock.core.view import View


def test_one_proof_at_a_time_and_no_more_than_is_needed() -> None:
    view = View(START)
    prover = Prover(view)
    assert prover.prove(again=False) == [Prove()]
    assert prover.prove(again=False) == []
    assert prover.prove(again=True) == [], "it is under way"
    assert not view.proven
    assert prover.succeeded() == []
    assert view.proven
    assert prover.prove(again=False) == []
    assert prover.prove(again=True) == [Prove()]


def test_a_failure_is_said_once_and_tried_again() -> None:
    view = View(START)
    prover = Prover(view)
    prover.prove(again=False)
    text = "cgroup matching could not be proven: lo is down"
    assert prover.failed("lo is down") == [Journal("error", text, "failed")]
    assert (view.proven, view.proof_error) == (False, "lo is down")
    assert prover.prove(again=False) == [Prove()]
    assert prover.failed("lo is down") == []
    prover.prove(again=False)
    assert len(prover.failed("something else")) == 1
    prover.prove(again=False)
    prover.succeeded()
    assert (view.proven, view.proof_error) == (True, "")
    prover.prove(again=True)
    assert len(prover.failed("something else")) == 1, "it was good meanwhile"
    assert not view.proven
