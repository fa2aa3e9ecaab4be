"""Measurements.  They print figures; nothing here is a test: what is timed fails at random on a busy machine."""

import sys
from pathlib import Path

# `governed` is where pytest's own path would find it; penstock may not be installed.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "agent")]
