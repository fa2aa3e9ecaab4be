"""Counters of rules in chains."""

from penstock.core import hits


def test_a_counter_is_of_one_rule() -> None:
    counters = {
        hits.counter("a", "egress-1"): (3, 180),
        hits.counter("a", "b_c"): (5, 300),
        hits.counter("a-b", "c"): (7, 420),
        "denied_out_a": (9, 540),
    }
    assert hits.of("a", counters) == {"egress-1": 3, "b_c": 5}
    assert hits.of("a-b", counters) == {"c": 7}
    assert hits.of("b", counters) == {}
    assert len(counters) == 4
