"""Words of `penstock status` that scripts, metrics and the command line share."""

from __future__ import annotations

NOT_IN_FORCE = ("degraded", "unenforced")
"""What a workload is called whose policy does not hold, or is not known to."""
