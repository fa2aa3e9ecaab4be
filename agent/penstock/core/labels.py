"""Which connection label bit stands for which workload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.core.base_chains import FIRST_LABEL, LABELS


def assign(workloads: Iterable[str], before: Mapping[str, int]) -> dict[str, int]:
    """Return workload -> bit.  A workload keeps its bit; a bit whose workload is gone is used again last.

    Live connections carry the bits, so a bit that changed hands would make one workload's connection look like
    another's.  `before` holds all assignments that were ever made, gone workloads too; so does the result.
    ValueError when there are more workloads than bits.
    """
    wanted = sorted(workloads)
    labels = {name: bit for name, bit in before.items() if FIRST_LABEL <= bit < LABELS}
    free = [bit for bit in range(FIRST_LABEL, LABELS) if bit not in labels.values()]
    gone = [name for name in labels if name not in wanted]  # in the order in which they came
    for name in wanted:
        if name in labels:
            continue
        if free:
            labels[name] = free.pop(0)
        elif gone:
            labels[name] = labels.pop(gone.pop(0))
        else:
            raise ValueError(f"more than {LABELS - FIRST_LABEL} workloads")
    return labels
