"""Hashes that tell weights apart, recorded by policies and checkpoints."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def fingerprint_state(state: dict[str, Tensor]) -> str:
    """16 hex digits over names, shapes and a strided sample of the values (at most 4,096 a tensor), as float32.

    A sample keeps this fast for large networks and still tells any two trained ones apart.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().flatten()
        digest.update(f"{key}{tuple(state[key].shape)}".encode())
        digest.update(value[:: max(1, value.numel() // 4096)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_tokenizer(tokenizer: nn.Module) -> str:
    """:func:`fingerprint_state` of a tokenizer as it was placed: of the weights rounded to bfloat16, which is what they are in
    either compute type."""
    return fingerprint_state({key: value.to(torch.bfloat16) for key, value in tokenizer.state_dict().items()})
