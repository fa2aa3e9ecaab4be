"""Write the smallest model that llama-server loads: one block, random weights, a byte vocabulary.

The file format is GGUF 3: magic, counts, key-value pairs, tensor table, padding, tensor data.  It says
nothing sensible; it makes the server a working one.
"""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

WIDTH = 64
HEADS = 4
FEED_FORWARD = 128
ALIGNMENT = 32

_UINT32, _FLOAT32, _STRING, _ARRAY, _INT32 = 4, 6, 8, 9, 5
_BYTE_TOKEN, _CONTROL_TOKEN, _UNKNOWN_TOKEN = 6, 3, 2

Value = int | float | str | list[str] | list[int] | list[float]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    head = struct.pack("<I", _ARRAY)
    if isinstance(value[0], str):
        return head + struct.pack("<IQ", _STRING, len(value)) + b"".join(_string(str(v)) for v in value)
    kind, code = (_INT32, "i") if isinstance(value[0], int) else (_FLOAT32, "f")
    return head + struct.pack("<IQ", kind, len(value)) + struct.pack(f"<{len(value)}{code}", *value)


def _metadata() -> dict[str, Value]:
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{n:02X}>" for n in range(256)]
    return {
        "general.architecture": "llama",
        "general.name": "penstock demo, random weights",
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [_UNKNOWN_TOKEN, _CONTROL_TOKEN, _CONTROL_TOKEN] + [_BYTE_TOKEN] * 256,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _shapes() -> dict[str, tuple[int, ...]]:
    """Name of each tensor and its dimensions, the fastest one first."""
    square = (WIDTH, WIDTH)
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (WIDTH,),
        "attn_q": square,
        "attn_k": square,
        "attn_v": square,
        "attn_output": square,
        "ffn_norm": (WIDTH,),
        "ffn_gate": (WIDTH, FEED_FORWARD),
        "ffn_up": (WIDTH, FEED_FORWARD),
        "ffn_down": (FEED_FORWARD, WIDTH),
    }
    return {
        "token_embd.weight": (WIDTH, 259),
        **{f"blk.0.{name}.weight": shape for name, shape in block.items()},
        "output_norm.weight": (WIDTH,),
        "output.weight": (WIDTH, 259),
    }


def tiny_model(path: Path) -> None:
    """Write the model to `path`: 0.3 MB, the same bytes each time."""
    source = random.Random(1)
    metadata, table, data = _metadata(), b"", b""
    for name, shape in _shapes().items():
        count = math.prod(shape)
        table += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        table += struct.pack("<IQ", 0, len(data))  # type 0: float32
        data += struct.pack(f"<{count}f", *(source.uniform(-0.1, 0.1) for _ in range(count)))
        data += bytes(-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(_shapes()), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items()) + table
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
