"""What makes blocks the same to a reader: the row that they share in a summary, and the far end's text.

The index of the log keeps sums under these keys: whoever changes one changes `VERSION` of the index.
"""

from __future__ import annotations

from penstock.core.blocks import Block
from penstock.core.text import printable

NOT_APART = "(not kept apart)"


def destination(block: Block) -> tuple[object, ...]:
    """Blocks of which this is the same are one row."""
    where = block.name or block.address or block.reason
    asked = block.is_lookup  # over UDP or TCP, that is the same to whoever asks
    protocol = None if asked else block.protocol
    return block.workload, block.direction, block.verdict, where, block.port, protocol, asked


def endpoint(block: Block) -> str:
    """The remote end, and for direction in the port that was asked for here; of a look-up what was asked."""
    if block.is_lookup:
        return f"asked {printable(block.name or NOT_APART)}"
    if block.address is None and block.name is None:
        return NOT_APART
    host = printable(block.name or block.address or "")
    protocol = printable(block.protocol or "?")
    after = f" ({printable(block.address)})" if block.name and block.address else ""
    if block.port is None:
        return f"{host}/{protocol}{after}"
    if block.direction == "in":
        return f"{host} on {block.port}/{protocol}{after}"
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{block.port}/{protocol}{after}"


def group_key(block: Block, by: str) -> str | None:
    """What `by` (destination, workload or process) groups a block under, beside its workload; None: unknown."""
    if by == "workload":
        return block.workload
    if by == "process":
        return block.process.comm
    return endpoint(block) if block.address or block.name or block.is_lookup else None
