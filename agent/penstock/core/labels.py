"""Which connection label stands for which workload."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from penstock.core.label_bits import FIRST_LABEL, LABELS


def assign(workloads: Iterable[str], before: Mapping[str, int]) -> dict[str, int]:
    """Return workload -> label.  A workload keeps its own; one whose workload is gone is used again last.

    Live connections carry them, so a label that changed hands would make one workload's connection look like
    another's.  `before` holds all assignments that were ever made, gone workloads too; so does the result.
    ValueError when there are more workloads than labels.
    """
    wanted = sorted(workloads)
    labels = {name: label for name, label in before.items() if FIRST_LABEL <= label < LABELS}
    taken = set(labels.values())
    free = deque(label for label in range(FIRST_LABEL, LABELS) if label not in taken)
    gone = [name for name in labels if name not in wanted]  # in the order in which they came
    for name in wanted:
        if name in labels:
            continue
        if free:
            labels[name] = free.popleft()
        elif gone:
            labels[name] = labels.pop(gone.pop(0))
        else:
            raise ValueError(f"more than {LABELS - FIRST_LABEL} workloads")
    return labels
